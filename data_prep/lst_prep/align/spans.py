"""Times of words, and their rounding to frames (SPEC 6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

from lst_prep.audio import RATE
from lst_prep.languages import ENGLISH
from lst_prep.manifest import Entry
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.transcript import Word


class Piece(NamedTuple):
    """What an aligner is given of a piece.

    Attributes:
        samples: float32 [N] at 16 kHz.
        words: of its transcript, see `lst_prep.transcript`.
        language: a tag.
        entry: its manifest line, where it comes from one.
        inputs: opens further files of the item of work.
    """

    samples: np.ndarray
    words: list[Word]
    language: str = ENGLISH
    entry: Entry | None = None
    inputs: Inputs | None = None

    @property
    def text(self) -> str:
        """The transcript as it is written, or its spoken words."""
        if self.entry is not None:
            return self.entry.text
        return " ".join(part for word in self.words for part in word.spoken)

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


@dataclass(frozen=True)
class AlignedWords:
    """W words of one piece, in order.

    Attributes:
        seconds: float64 [W, 2], begin and end in the piece.
        scores: float32 [W], the aligner's confidence, higher is better; comparable within one aligner only.
        chars: int32 [W, 2], half-open spans in the piece's text.
        letters: float64 [L], when each spoken letter ends, all words' letters in order; empty when the aligner has no
            times of letters.
        letter_counts: int32 [W], how many of them each word has; empty when there are none.
    """

    seconds: np.ndarray
    scores: np.ndarray
    chars: np.ndarray
    letters: np.ndarray = field(default_factory=lambda: np.zeros(0))
    letter_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


class Aligner(Protocol):
    """What aligns pieces.

    Attributes:
        fingerprint: identity of the acoustic model and of what gives pronunciations.
    """

    fingerprint: str

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        """Each piece with the times of its words, or with why it has none: no_pronunciation, not_aligned..."""


def attempt(function: Callable[[], AlignedWords]) -> AlignedWords | Rejection:
    """What a function returns, or the rejection that it raises."""
    try:
        return function()
    except Rejection as rejection:
        return rejection


def group_spoken(
    words: list[Word],
    seconds: list[tuple[float, float]],
    scores: list[float],
    letters: list[list[float]] | None = None,
) -> AlignedWords:
    """Times of spoken words -> times of the transcript's words (one word may be several spoken ones).

    Args:
        seconds, scores: one entry per spoken word, all words' spoken words in order.
        letters: when each letter of each spoken word ends, where the aligner knows.
    """
    if len(seconds) != sum(len(word.spoken) for word in words):
        raise Rejection("words_differ", f"{len(seconds)} spoken words aligned")
    spans, means, at = [], [], 0
    ends: list[float] = []
    counts: list[int] = []
    for word in words:
        last = at + len(word.spoken)  # spoken words `at` to `last` - 1 are this word's
        spans.append((seconds[at][0], seconds[last - 1][1]))
        means.append(float(np.mean(scores[at:last])))
        if letters is not None:
            ends += [end for part in letters[at:last] for end in part]
            counts.append(sum(map(len, letters[at:last])))
        at = last
    return AlignedWords(
        np.array(spans, np.float64),
        np.array(means, np.float32),
        np.array([(word.begin, word.end) for word in words], np.int32),
        np.array(ends, np.float64),
        np.array(counts, np.int32),
    )


def to_frames(seconds: np.ndarray, frames: int, rate: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Half-open frame spans of words (SPEC 6).

    b = floor(rate t_begin), e = max(b + 1, ceil(rate t_end)), with rate t rounded to 1e-6 first; clamped to [0, frames]
    and to begin no earlier than the word before ends. A word left empty joins its predecessor (the first word takes the
    last frame when it begins behind the audio).

    Args:
        seconds: float64 [W, 2].
        frames: number of frames, at least 1.
        rate: frames a second.

    Returns:
        int32 [V, 2] spans of the V <= W words that remain, and int32 [W], the remaining word that each word is now in.
    """
    if frames < 1:
        raise ValueError("to_frames needs at least one frame")
    ticks = np.round(seconds * float(rate), 6)
    begins = np.floor(ticks[:, 0]).astype(np.int64)
    ends = np.maximum(begins + 1, np.ceil(ticks[:, 1]).astype(np.int64))
    spans: list[list[int]] = []
    owner = np.zeros(len(seconds), np.int32)
    for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        begin, end = max(int(begin), 0), min(int(end), frames)
        if not spans:
            begin = min(begin, frames - 1)
            spans.append([begin, max(end, begin + 1)])
        else:
            begin = max(begin, spans[-1][1])  # no earlier than the word before ends
            if end > begin:
                spans.append([begin, end])
        owner[index] = len(spans) - 1  # a word left empty is in the one before
    return np.array(spans, np.int32).reshape(-1, 2), owner
