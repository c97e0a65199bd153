"""The words of an alignment fitted to those of the transcript: where they differ, by their edit distance."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lst_prep.align.imported.labels import Label
from lst_prep.align.spans import AlignedWords
from lst_prep.languages import written_words
from lst_prep.rejection import Rejection
from lst_prep.transcript import Word
from megatron_lst.documents.words import word_parts

_MARK = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}")
_SILENCE = {"sil", "sp", "spn", "pau", "silence", "noise", "eps"}
"""What aligners write in place of words."""


@dataclass(frozen=True)
class _Unit:
    """A word in a form for comparisons, or a character of a script without spaces. Times in seconds, or None."""

    text: str
    begin: float | None = None
    end: float | None = None
    score: float = 0.0

    def part(self, first: int, last: int) -> tuple[float, float] | None:
        """When letters [first, last) of it are said, each as long as the others."""
        if self.begin is None or self.end is None:
            return None
        letter = (self.end - self.begin) / len(self.text)
        return self.begin + first * letter, self.begin + last * letter if last < len(self.text) else self.end


def fit(words: list[Word], labels: list[Label], language: str, seconds: float, most: float) -> AlignedWords:
    """Times of the transcript's words.

    Words that both have take the alignment's times. Stretches that differ are compared letter by letter; a word
    without any letter in common takes what is left between its neighbours.

    Args:
        words: of the transcript, as they are written.
        labels: of the alignment, in order, silences included.
        seconds: length of the piece.
        most: share of the transcript's letters that may differ.

    Raises:
        Rejection: words_differ, bad_alignment.
    """
    wanted, owners = _of_transcript(words)
    given = list(_of_labels(labels, language, {unit.text for unit in wanted}))
    times, scores, differ, first = _matched(wanted, given)
    letters = sum(len(unit.text) for unit in wanted)
    if differ > most * letters:
        raise Rejection("words_differ", f"{differ} of {letters} letters differ; {first}")
    spans = np.full((len(words), 2), np.nan)
    means: list[list[float]] = [[] for _ in words]
    for owner, time, score in zip(owners, times, scores, strict=True):
        if time is not None:
            low, high = spans[owner]
            spans[owner] = (time[0], time[1]) if np.isnan(low) else (low, max(high, time[1]))
            means[owner].append(score)
    _fill(spans, seconds, [sum(map(len, word.spoken)) for word in words])
    return AlignedWords(
        spans,
        np.array([np.mean(found) if found else 0.0 for found in means], np.float32),
        np.array([(word.begin, word.end) for word in words], np.int32),
    )


def _of_transcript(words: list[Word]) -> tuple[list[_Unit], list[int]]:
    units, owners = list[_Unit](), list[int]()
    for index, word in enumerate(words):
        for spoken in word.spoken:
            parts = word_parts(spoken) or [spoken]
            units += map(_Unit, parts)
            owners += [index] * len(parts)
    return units, owners


def _of_labels(labels: list[Label], language: str, known: set[str]) -> Iterator[_Unit]:
    for label in labels:
        if _MARK.fullmatch(label.text) or (label.text.lower() in _SILENCE and label.text.lower() not in known):
            continue
        if len(label.text.split()) > 1:
            raise Rejection("bad_alignment", f"{label.where}: {label.text[:60]!r} is more than a word")
        parts = [part for word in written_words(label.text, language) for part in word_parts(word) or [word]]
        whole, at = _Unit("".join(parts), label.begin, label.end, label.score), 0
        for part in parts:
            time = whole.part(at, at + len(part))
            begin, end = time or (None, None)
            yield _Unit(part, begin, end, label.score)
            at += len(part)


Times = list[tuple[float, float] | None]


def _matched(wanted: list[_Unit], given: list[_Unit]) -> tuple[Times, list[float], int, str]:
    """(times, scores) of the wanted units, letters that differ, and where they do first."""
    from rapidfuzz.distance import Levenshtein

    times: Times = [None] * len(wanted)
    scores, differ, first = [0.0] * len(wanted), 0, ""
    codes = Levenshtein.opcodes([unit.text for unit in wanted], [unit.text for unit in given])
    blocks: list[list[int]] = []  # [equal, begin and end in wanted, begin and end in given]
    for code in codes:
        equal = int(code.tag == "equal")
        if blocks and not equal and not blocks[-1][0]:  # a replacement and the insertion beside it are one difference
            blocks[-1][2], blocks[-1][4] = code.src_end, code.dest_end
        else:
            blocks.append([equal, code.src_start, code.src_end, code.dest_start, code.dest_end])
    for equal, low, high, begin, end in blocks:
        if equal:
            for index, unit in zip(range(low, high), given[begin:end], strict=True):
                times[index], scores[index] = unit.part(0, len(unit.text)), unit.score
            continue
        count = _letters(wanted, given, (low, high), (begin, end), times, scores)
        if count and not first:
            there, here = (" ".join(unit.text for unit in u) for u in (wanted[low:high], given[begin:end]))
            first = f"the first: {there!r} in the transcript, {here!r} in the alignment"
        differ += count
    return times, scores, differ, first


def _letters(
    wanted: list[_Unit],
    given: list[_Unit],
    ours: tuple[int, int],
    theirs: tuple[int, int],
    times: Times,
    scores: list[float],
) -> int:
    """Fit a stretch that differs letter by letter; returns how many do."""
    from rapidfuzz.distance import Levenshtein

    mine = [(index, place) for index in range(*ours) for place in range(len(wanted[index].text))]
    other = [(index, place) for index in range(*theirs) for place in range(len(given[index].text))]
    source = "".join(wanted[index].text for index in range(*ours))
    target = "".join(given[index].text for index in range(*theirs))
    differ = 0
    for code in Levenshtein.opcodes(source, target):
        if code.tag != "equal":
            differ += max(code.src_end - code.src_start, code.dest_end - code.dest_start)
        if code.tag in ("insert", "delete"):
            continue
        for at, there in zip(range(code.src_start, code.src_end), range(code.dest_start, code.dest_end), strict=True):
            index, (unit, place) = mine[at][0], other[there]
            time, before = given[unit].part(place, place + 1), times[index]
            if time is not None:
                times[index] = (before[0] if before else time[0], time[1])
                scores[index] = given[unit].score
    return differ


def _fill(spans: np.ndarray, seconds: float, letters: list[int]) -> None:
    """Give words without times, float64 [W, 2] NaN, what is left between their neighbours, by their letters."""
    known = np.flatnonzero(~np.isnan(spans[:, 0]))
    edges = [-1, *known.tolist(), len(spans)]
    for before, after in zip(edges, edges[1:], strict=False):
        missing = range(before + 1, after)
        if not missing:
            continue
        low = float(spans[before, 1]) if before >= 0 else 0.0
        high = max(float(spans[after, 0]) if after < len(spans) else seconds, low)
        shares = np.cumsum([0, *(letters[i] for i in missing)]) / max(sum(letters[i] for i in missing), 1)
        for place, index in enumerate(missing):
            spans[index] = low + shares[place] * (high - low), low + shares[place + 1] * (high - low)
