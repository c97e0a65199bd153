"""How far Whisper's word edges are off, beside pocketsphinx's, on speech whose times flite says (`-s` shows it)."""

from pathlib import Path

import numpy as np
import pytest

from lst_prep.align import AlignedWords, Aligner, Piece, make_aligner
from lst_prep.config import AlignConfig
from lst_prep.manifest import Entry
from lst_prep.pronounce import flite_version
from lst_prep.transcript import normalise
from tests.data_prep.test_align import SENTENCES, known_times
from tests.evaluation.test_judge import _model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.models,
    pytest.mark.skipif(not flite_version(), reason="needs the synthesiser flite"),
]
MORE = [
    "He that hath knowledge spareth his words, and a man of understanding is of an excellent spirit.",
    "A merry heart doeth good like a medicine, but a broken spirit drieth the bones.",
    "Go to the ant, consider her ways, and be wise.",
    "Remember now thy creator in the days of thy youth, while the evil days come not.",
    "All the rivers run into the sea, yet the sea is not full.",
    "To every thing there is a season, and a time to every purpose under the heaven.",
]
Known = tuple[str, np.ndarray, np.ndarray]


def errors(aligner: Aligner, data: list[Known], numbers: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds by which edges are off, and by which they are off the words' times in reverse."""
    found, reverse = [], []
    for text, samples, times in data:
        piece = Piece(samples, normalise(text, numbers), "en", Entry("p", "p.wav", text))
        (aligned,) = aligner.align_batch([piece])
        assert isinstance(aligned, AlignedWords), aligned
        found.append(np.abs(aligned.seconds - times).ravel())
        reverse.append(np.abs(aligned.seconds - times[::-1]).ravel())
    return np.concatenate(found), np.concatenate(reverse)


def test_errors_of_whisper_base_and_pocketsphinx(tmp_path: Path) -> None:
    data = [
        (text, *known_times(text, voice, tmp_path)) for text in SENTENCES + MORE for voice in ("slt", "rms", "kal16")
    ]
    shown = {}
    for name, config, numbers in (
        ("pocketsphinx", AlignConfig(), "spell"),
        ("whisper base", AlignConfig("whisper", str(_model("base", tmp_path))), "keep"),
    ):
        found, reverse = errors(make_aligner(config), data, numbers)
        shown[name] = [float(np.percentile(found, share)) * 1000 for share in (50, 90)]
        print(f"{name}: {len(found)} edges, median {shown[name][0]:.0f} ms, 90 % within {shown[name][1]:.0f} ms")
        assert np.median(reverse) > 0.3  # the control
    assert shown["pocketsphinx"][0] <= 20
    assert shown["whisper base"][0] <= 80
    assert shown["whisper base"][1] <= 200
