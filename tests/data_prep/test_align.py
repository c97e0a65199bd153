"""Word times: SPEC 6's rounding, and accuracy against speech whose times are known."""

import re
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lst_prep.align import make_aligner
from lst_prep.align.spans import group_spoken, to_frames
from lst_prep.align.sphinx import _last_pause
from lst_prep.audio import check
from lst_prep.config import AlignConfig, AudioConfig
from lst_prep.pronounce import flite_version
from lst_prep.rejection import Rejection
from lst_prep.transcript import Word, normalise

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"
SENTENCES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void.",
    "Two are better than one, because they have a good reward for their labour.",
    "Cast thy bread upon the waters, for thou shalt find it after many days.",
    "A soft answer turneth away wrath, but grievous words stir up anger.",
    "The sun also riseth, and the sun goeth down.",
]

RATE = Fraction(25)


def seconds(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, np.float64)


def test_rounding_is_the_specified_one() -> None:
    spans, owner = to_frames(seconds((0.28, 0.56), (0.56, 0.6), (0.61, 0.99)), 100, RATE)
    assert spans.tolist() == [[7, 14], [14, 15], [15, 25]]  # 25 * 0.28 is 7.000000000000001 in floats
    assert owner.tolist() == [0, 1, 2]


def test_a_word_left_empty_joins_its_predecessor() -> None:
    spans, owner = to_frames(seconds((0.0, 0.15), (0.13, 0.15), (0.2, 0.3)), 100, RATE)
    assert spans.tolist() == [[0, 4], [5, 8]]
    assert owner.tolist() == [0, 0, 1]


def test_times_behind_the_audio_are_clamped() -> None:
    spans, owner = to_frames(seconds((0.9, 1.3), (1.3, 1.4)), 25, RATE)
    assert spans.tolist() == [[22, 25]]
    assert owner.tolist() == [0, 0]
    assert to_frames(seconds((2.0, 3.0)), 25, RATE)[0].tolist() == [[24, 25]]


def test_spans_are_always_increasing_and_within() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        times = np.sort(rng.uniform(0, 4, 40)).reshape(-1, 2) + rng.normal(0, 0.02, (20, 1))
        spans, owner = to_frames(times, 90, RATE)
        assert (spans[:, 0] < spans[:, 1]).all()
        assert (spans[1:, 0] >= spans[:-1, 1]).all()
        assert spans[0, 0] >= 0
        assert spans[-1, 1] <= 90
        assert (np.diff(owner) >= 0).all()
        assert owner.max() == len(spans) - 1


def test_spoken_words_are_grouped_into_the_transcripts() -> None:
    words = [Word(0, 4, ("a",)), Word(5, 15, ("b", "c"))]
    grouped = group_spoken(words, [(0, 1), (1, 2), (2, 3)], [-1, -2, -4])
    assert grouped.seconds.tolist() == [[0, 1], [1, 3]]
    assert grouped.scores.tolist() == [-1, -3]
    with pytest.raises(Rejection, match="words_differ"):
        group_spoken(words, [(0, 1)], [-1])


def test_a_window_is_cut_at_its_longest_late_pause() -> None:
    part = [("w", i * 1.0, i * 1.0 + 0.9, 0.0) for i in range(10)]
    part[7] = ("w", 7.3, 7.9, 0.0)
    assert _last_pause(part) == 7
    assert _last_pause([("w", i * 1.0, i + 1.0, 0.0) for i in range(10)]) == 7


def known_times(text: str, voice: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Speech of `text` and the begin and end of each word in it, by the synthesiser's own account."""
    wav = folder / "out.wav"
    options = ["flite", "-voice", voice, "-psdur", "-t", text]
    shown = subprocess.run([*options, "-o", str(wav)], capture_output=True, text=True, check=True).stdout
    phones = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", shown)]
    counts = []
    for word in re.findall(r"[A-Za-z']+", text):
        alone = subprocess.run(["flite", "-voice", voice, "-ps", "-t", word, "none"], capture_output=True, text=True)
        counts.append(len([p for p in alone.stdout.split() if p != "pau"]))
    spoken = [
        (begin, end) for (_, begin), (name, end) in zip([("", 0.0), *phones], phones, strict=False) if name != "pau"
    ]
    if sum(counts) != len(spoken):
        pytest.skip("phones in context differ in number from the words' alone")
    ends = np.cumsum(counts)
    times = np.array([(spoken[e - n][0], spoken[e - 1][1]) for e, n in zip(ends, counts, strict=True)])
    samples, rate = soundfile.read(wav, dtype="float32")
    return check(samples, rate, AudioConfig()).samples, times


@pytest.mark.skipif(not flite_version(), reason="needs the synthesiser flite")
def test_word_boundaries_are_accurate_on_speech_with_known_times(tmp_path: Path) -> None:
    """Median error at most 20 ms, 90 % within 80 ms; and shuffled words would fail (negative control)."""
    aligner = make_aligner(AlignConfig())
    errors, shuffled = [], []
    for index, sentence in enumerate(SENTENCES):
        for voice in ("slt", "rms", "kal16")[index % 2 :: 2] or ("slt",):
            samples, times = known_times(sentence, voice, tmp_path)
            aligned = aligner.align(samples, normalise(sentence))
            assert aligned.seconds.shape == times.shape
            errors.append(np.abs(aligned.seconds - times).ravel())
            shuffled.append(np.abs(aligned.seconds - times[::-1]).ravel())
    error = np.concatenate(errors)
    print(f"median {np.median(error) * 1000:.1f} ms, 90 % within {np.quantile(error, 0.9) * 1000:.0f} ms")
    assert np.median(error) <= 0.020
    assert np.quantile(error, 0.9) <= 0.080
    assert np.median(np.concatenate(shuffled)) > 0.3


@pytest.mark.skipif(not flite_version(), reason="needs the synthesiser flite")
@pytest.mark.parametrize("voice", ["slt", "rms"])
def test_pauses_are_spans_of_their_own(voice: str, tmp_path: Path) -> None:
    text = (
        "Then said one unto him, Lord, are there few that be saved? And he said unto them, strive to enter in at "
        "the gate. For many will seek to enter in."
    )
    samples, times = known_times(text, voice, tmp_path)
    aligned = make_aligner(AlignConfig()).align(samples, normalise(text)).seconds
    pauses = np.flatnonzero(times[1:, 0] - times[:-1, 1] > 0.05)
    assert len(pauses) == 5
    found = aligned[1:, 0] - aligned[:-1, 1]
    assert (found[pauses] > 0.03).sum() >= 4
    assert (np.delete(found, pauses) > 0.03).sum() <= 1


def speech(*numbers: str) -> tuple[np.ndarray, str]:
    import json

    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    chosen = [next(e for e in lines if e["id"] == f"librivox-sense-{n}") for n in numbers]
    audio = [soundfile.read(CORPUS / e["audio"], dtype="float32")[0] for e in chosen]
    return np.concatenate(audio), " ".join(e["text"] for e in chosen)


def test_windows_give_the_same_times_as_one_pass() -> None:
    """Human speech, five sentences end to end."""
    samples, text = speech("0870", "0880", "0890", "0920", "0930")
    tables = (str(CORPUS / "pronunciations.txt"),)
    whole = make_aligner(AlignConfig(piece_seconds=60, pronunciations=tables, flite=False)).align(
        samples, normalise(text)
    )
    parts = make_aligner(AlignConfig(piece_seconds=5, pronunciations=tables, flite=False)).align(
        samples, normalise(text)
    )
    difference = np.abs(whole.seconds - parts.seconds)
    assert np.median(difference) <= 0.01
    assert np.quantile(difference, 0.95) <= 0.1


def test_results_do_not_depend_on_what_was_aligned_before() -> None:
    first, text = speech("0890")
    other, other_text = speech("0920")
    tables = (str(CORPUS / "pronunciations.txt"),)
    fresh = make_aligner(AlignConfig(pronunciations=tables, flite=False)).align(first, normalise(text))
    used = make_aligner(AlignConfig(pronunciations=tables, flite=False))
    used.align(other * 0.3, normalise(other_text))
    again = used.align(first, normalise(text))
    assert fresh.seconds.tolist() == again.seconds.tolist()
    assert fresh.scores.tolist() == again.scores.tolist()


def test_wrong_transcripts_score_lower() -> None:
    samples, text = speech("0890")
    aligner = make_aligner(AlignConfig(pronunciations=(str(CORPUS / "pronunciations.txt"),), flite=False))
    right = aligner.align(samples, normalise(text)).scores.mean()
    try:
        wrong = aligner.align(samples, normalise("nothing of the kind has ever been said by anybody")).scores.mean()
    except Rejection:
        return
    assert wrong < right - 0.5


def test_what_pronounces_unknown_words_is_in_the_fingerprint(install_flite: Callable[[str], None]) -> None:
    def fingerprints(flite: bool) -> list[str]:
        found = []
        for version in ("", "flite-2.2-current", "flite-2.3"):
            install_flite(version)
            found.append(make_aligner(AlignConfig(flite=flite)).fingerprint)
        return found

    asked = fingerprints(flite=True)
    for said, one in zip(("without flite", "with flite-2.2-current", "with flite-2.3"), asked, strict=True):
        assert said in one
    assert len(set(asked)) == 3
    assert len(set(fingerprints(flite=False))) == 1  # the control: who is not asked changes nothing


def test_a_word_is_pronounced_where_flite_is_installed_alone(install_flite: Callable[[str], None]) -> None:
    samples, _ = speech("0890")
    install_flite("")
    with pytest.raises(Rejection, match="no_pronunciation.*hxellow"):
        make_aligner(AlignConfig()).align(samples, normalise("hxellow"))
    install_flite("flite-2.2-current")
    assert len(make_aligner(AlignConfig()).align(samples, normalise("hxellow")).seconds) == 1
