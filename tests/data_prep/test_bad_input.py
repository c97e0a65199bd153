"""Bad input is rejected or handled, counted by reason, and never stops the job."""

import json
import os
import shutil
import subprocess
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lst_prep.audio import load
from lst_prep.config import AlignConfig, AudioConfig, JobConfig, PrepConfig, TextSource, UnitsConfig
from lst_prep.engine import lock
from lst_prep.pipeline import Preparation, run
from lst_prep.rejection import REASONS, Rejection
from megatron_lst.config.load import build
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.errors import UserError

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"
SPEECH = CORPUS / "audio" / "librivox-sense-0870.ogg"
TEXT = (
    "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them."
)


def noise(seconds: float, rate: int = 16000, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, int(seconds * rate)).astype(np.float32)


def make_audio(folder: Path) -> None:
    speech, rate = soundfile.read(SPEECH, dtype="float32")
    soundfile.write(folder / "good.wav", speech, rate)
    stereo = np.repeat(speech, 3)[:, None] * np.array([[0.8, 0.6]], np.float32)
    soundfile.write(folder / "stereo48k.wav", stereo, 3 * rate)
    soundfile.write(folder / "8k.wav", noise(2, 8000), 8000)
    soundfile.write(folder / "50ms.wav", noise(0.05), 16000)
    soundfile.write(folder / "no-samples.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(folder / "silent.wav", np.zeros(32000, np.float32), 16000)
    soundfile.write(folder / "clipped.wav", np.sign(noise(2)), 16000)
    soundfile.write(folder / "noise.wav", noise(4), 16000)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "corrupt.ogg").write_bytes(SPEECH.read_bytes()[:2000] + bytes(20000))
    (folder / "truncated.ogg").write_bytes(SPEECH.read_bytes()[:9000])
    (folder / "text.wav").write_text("no audio at all")
    (folder / "x.raw").write_bytes(bytes(64000))
    with wave.open(str(folder / "10h.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.setnframes(10 * 3600 * 16000)
    with (folder / "10h.wav").open("r+b") as file:  # a sparse file: ten hours of zeros that take no room
        file.truncate(44 + 10 * 3600 * 16000 * 2)
        file.seek(44 + 5 * 3600 * 16000 * 2)
        file.write((speech * 32767).astype("<i2").tobytes())
        file.seek(4)
        file.write((36 + 10 * 3600 * 32000).to_bytes(4, "little"))
        file.seek(40)
        file.write((10 * 3600 * 32000).to_bytes(4, "little"))


CASES: dict[str, tuple[dict[str, object], str | None]] = {
    "good": ({"audio": "good.wav"}, None),
    "stereo at 48 kHz": ({"audio": "stereo48k.wav"}, None),
    "inside ten hours": ({"audio": "10h.wav", "start": 18000, "end": 18007.1}, None),
    "8 kHz": ({"audio": "8k.wav"}, "low_rate_audio"),
    "50 ms": ({"audio": "50ms.wav"}, "too_short"),
    "no samples": ({"audio": "no-samples.wav"}, "empty_audio"),
    "behind the end": ({"audio": "good.wav", "start": 100}, "empty_audio"),
    "silent": ({"audio": "silent.wav"}, "silent_audio"),
    "clipped": ({"audio": "clipped.wav"}, "clipped_audio"),
    "ten hours": ({"audio": "10h.wav"}, "too_long"),
    "empty file": ({"audio": "empty.wav"}, "unreadable_audio"),
    "corrupt": ({"audio": "corrupt.ogg"}, "unreadable_audio"),
    "no audio": ({"audio": "text.wav"}, "unreadable_audio"),
    "missing": ({"audio": "missing.wav"}, "given_up"),
    "of no known kind": ({"audio": "x.raw"}, "unreadable_audio"),
    "a name that no file has": ({"audio": "n" * 300}, "unreadable_audio"),
    "NUL in the name": ({"audio": "go\0od.wav"}, "bad_manifest_line"),
    "far behind the end": ({"audio": "good.wav", "start": 3, "end": 40}, "outside_audio"),
    "a channel that is not there": ({"audio": "good.wav", "channel": 1}, "unreadable_audio"),
    "NeMo": ({"audio": "good.wav", "offset": 0.0, "duration": 1.6}, "unknown_key"),
    "begin and stop": ({"audio": "good.wav", "begin": 0.0, "stop": 1.6}, "unknown_key"),
    "half a surrogate in the speaker": ({"audio": "good.wav", "speaker": "\ud83d"}, "bad_manifest_line"),
    "half a surrogate in the licence": ({"audio": "good.wav", "license": "\udc00"}, "bad_manifest_line"),
    "a speaker that is an object": ({"audio": "good.wav", "speaker": {"a": 1}}, "bad_manifest_line"),
    "a channel that is no number": ({"audio": "good.wav", "channel": [0]}, "bad_manifest_line"),
    "a folder": ({"audio": "."}, "unreadable_audio"),
    "Russian": ({"audio": "good.wav", "text": "В начале было слово"}, "language"),
    "German": ({"audio": "good.wav", "text": "Im Anfang schuf Gott Himmel und Erde"}, "no_pronunciation"),
    "markup": ({"audio": "good.wav", "text": "and <unk> then [laughter]"}, "markup_in_transcript"),
    "empty transcript": ({"audio": "good.wav", "text": "  "}, "empty_transcript"),
    "punctuation only": ({"audio": "good.wav", "text": "... -- !"}, "empty_transcript"),
    "far too many words": ({"audio": "good.wav", "text": TEXT * 5}, "words_too_fast"),
    "unknown word": ({"audio": "good.wav", "text": "the xqzvbrrk said"}, "no_pronunciation"),
    "not a string": ({"audio": "good.wav", "text": 5}, "bad_manifest_line"),
    "unknown split": ({"audio": "good.wav", "split": "nobody knows"}, "bad_manifest_line"),
    "end before start": ({"audio": "good.wav", "start": 2, "end": 1}, "bad_manifest_line"),
    "endless": ({"audio": "good.wav", "end": float("nan")}, "bad_manifest_line"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrepConfig, dict]:
    folder = tmp_path_factory.mktemp("bad")
    make_audio(folder)
    lines = [json.dumps({"id": name, "text": TEXT, **value}) for name, (value, _) in CASES.items()]
    lines += ["{not json", "[1, 2]", json.dumps({"id": "good", "audio": "good.wav", "text": "again"}), ""]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    config = PrepConfig(
        manifests=(str(folder / "manifest.jsonl"),),
        out=str(folder / "out"),
        give_up=("missing",),
        units=UnitsConfig(codebook_size=32),
        align=AlignConfig(flite=False, pronunciations=(str(CORPUS / "pronunciations.txt"),)),
        jobs=JobConfig(workers=1, item_pieces=5),
    )
    return config, run(config, quiet=True)


def test_every_case_is_counted_under_its_reason(prepared: tuple[PrepConfig, dict]) -> None:
    _, summary = prepared
    expected: dict[str, int] = {"duplicate_id": 1}
    for reason in [*(reason for _, reason in CASES.values() if reason), "bad_manifest_line", "bad_manifest_line"]:
        expected[reason] = expected.get(reason, 0) + 1
    assert summary["rejected"] == expected
    assert set(summary["rejected"]) <= set(REASONS)
    assert summary["audio_changes"] == {"mixed_to_mono": 1, "resampled": 1}


def test_the_good_ones_are_kept_and_equal(prepared: tuple[PrepConfig, dict]) -> None:
    documents = {d.id: d for d in ShardSet.open(Path(prepared[0].out) / "speech")}
    assert set(documents) == {name for name, (_, reason) in CASES.items() if reason is None}
    assert (documents["good"].speech_ids == documents["inside ten hours"].speech_ids).mean() > 0.95
    assert np.abs(documents["good"].word_frames - documents["stereo at 48 kHz"].word_frames).max() <= 3


def test_a_truncated_file_gives_what_it_holds_or_is_refused(tmp_path: Path) -> None:
    make_audio(tmp_path)
    try:
        sound = load(tmp_path / "truncated.ogg", None, None, AudioConfig())
    except Rejection as rejection:
        reason = rejection.reason
    else:
        reason = "shorter" if sound.seconds < 7 else "whole"
    assert reason in ("unreadable_audio", "empty_audio", "shorter")


def test_telephone_speech_is_taken_when_asked_for(tmp_path: Path) -> None:
    make_audio(tmp_path)
    sound = load(tmp_path / "8k.wav", None, None, AudioConfig(min_rate=8000))
    assert sound.changes == ("resampled",)
    assert len(sound.samples) == 32000


def test_nothing_at_all_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to prepare"):
        run(PrepConfig(manifests=(str(tmp_path / "empty.jsonl"),), out=str(tmp_path / "a")), quiet=True)
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match="bad_manifest_line"):
        run(PrepConfig(manifests=(str(tmp_path / "bad.jsonl"),), out=str(tmp_path / "b")), quiet=True)
    with pytest.raises(UserError, match=r"missing\.jsonl: cannot be read"):
        run(PrepConfig(manifests=(str(tmp_path / "missing.jsonl"),), out=str(tmp_path / "c")), quiet=True)
    shutil.rmtree(tmp_path / "c")


@pytest.mark.parametrize("stage", ["codebook", "text", "shards"])
def test_a_stage_before_its_time_says_what_comes_first(tmp_path: Path, stage: str) -> None:
    """Also where `manifest` was tried, and found nothing to do."""
    (tmp_path / "empty.jsonl").write_text("")
    preparation = Preparation(PrepConfig(manifests=(str(tmp_path / "empty.jsonl"),), out=str(tmp_path / "out")))
    for _ in range(2):
        with pytest.raises(UserError, match="run `lst prep manifest`"):
            getattr(preparation, stage)()
        with pytest.raises(UserError, match="nothing to prepare"):
            preparation.manifest()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_said_and_the_next_run_goes_on(workers: int, tmp_path: Path) -> None:
    """A real disk of a few hundred kB; made larger, the same command ends with what a large one gives."""
    make_audio(tmp_path)
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "audio": "good.wav", "text": TEXT}))
    sentences = [
        json.dumps({"id": str(i), "text": f"This is sentence {i} of them, and {i * i} more."}) for i in range(2000)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(sentences))
    base = PrepConfig(
        manifests=(str(tmp_path / "m.jsonl"),),
        text=(TextSource("toy", str(tmp_path / "t.jsonl")),),
        units=UnitsConfig(codebook_size=16),
        align=AlignConfig(flite=False, pronunciations=(str(CORPUS / "pronunciations.txt"),)),
        jobs=JobConfig(workers=workers),
    )
    small, large = replace(base, out=str(tmp_path / "small")), replace(base, out=str(tmp_path / "large"))
    expected = run(large, quiet=True)
    (tmp_path / "small").mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small.out], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    try:
        sizes = []
        for size in ("96k", "160k", "64m"):
            with pytest.raises(UserError, match="no space left"):
                run(small, quiet=True)
            sizes.append(len(list((tmp_path / "small").rglob("*.json"))))
            subprocess.run(["mount", "-o", f"remount,size={size}", small.out], check=True)
        assert sizes == sorted(sizes)  # what is done stays done
        assert run(small, quiet=True) == expected
        for name in ("speech", "text"):
            assert verify(Path(small.out) / name) == []
            found, wanted = (list(ShardSet.open(Path(c.out) / name)) for c in (small, large))
            assert [(d.id, d.text) for d in found] == [(d.id, d.text) for d in wanted]
        assert not list(Path(small.out).rglob("*.tmp"))
    finally:
        subprocess.run(["umount", small.out], check=True)


def test_two_runs_on_one_folder_do_not_mix(prepared: tuple[PrepConfig, dict]) -> None:
    config, summary = prepared
    with lock(Path(config.out) / ".lock"), pytest.raises(UserError, match="another preparation works in this folder"):
        run(config, quiet=True)
    assert run(config, quiet=True) == summary


def test_too_little_audio_for_the_codebook_is_said(tmp_path: Path) -> None:
    line = {"id": "a", "audio": str(SPEECH), "text": TEXT}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    config = PrepConfig(manifests=(str(tmp_path / "m.jsonl"),), out=str(tmp_path / "out"), jobs=JobConfig(workers=1))
    with pytest.raises(UserError, match=r"cannot fit 501 entries; [^;]*$"):
        run(config, quiet=True)
    (tmp_path / "m.jsonl").write_text(json.dumps({**line, "audio": "moved.ogg"}))
    (tmp_path / "moved.ogg").write_bytes(b"not here any more")
    with pytest.raises(
        UserError, match=r"cannot fit.*; 1 pieces were rejected, the first, a, as unreadable_audio: .*moved"
    ):
        run(replace(config, out=str(tmp_path / "moved")), quiet=True)


def test_an_output_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be written"):
        run(PrepConfig(out=str(tmp_path / "file" / "out")), quiet=True)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"jobs": {"workers": -1}}, r"jobs\.workers: must be between 0 and 65,536, got -1"),
        ({"jobs": {"item_pieces": 0}}, r"jobs\.item_pieces: must be at least 1, got 0"),
        ({"text_options": {"max_pieces": 0}}, r"text_options\.max_pieces"),
        ({"units": {"codebook_size": 40000}}, "32,768"),
    ],
)
def test_impossible_numbers_are_refused(section: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        build(PrepConfig, section)
