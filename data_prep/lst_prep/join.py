"""Aligned pieces -> documents: consecutive pieces of a recording are joined, long ones cut at pauses (SPEC 7)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from lst_prep.align.spans import AlignedWords, to_frames
from lst_prep.manifest import Entry
from lst_prep.tokenizer import Tokenizer
from lst_prep.word_runs import encode_runs
from megatron_lst.documents.schema import Document


@dataclass(frozen=True)
class AlignedPiece:
    """One manifest line with its speech tokens (int16 [F], F >= 1) and its aligned words."""

    entry: Entry
    speech_ids: np.ndarray
    aligned: AlignedWords


@dataclass
class _Run:
    """Consecutive pieces laid end to end: spans in frames of the run, characters of its text."""

    text: str
    speech_ids: np.ndarray
    frames: np.ndarray
    chars: np.ndarray
    scores: np.ndarray
    letters: list[np.ndarray]


def _joined(owner: np.ndarray, *of_words: np.ndarray) -> tuple[np.ndarray, ...]:
    """Words that are one: the first's begin and the last's end of each int [W, 2], the mean of each float [W].

    Args:
        owner: int64 [W], the word that each of them is now in, in order.
    """
    first = np.flatnonzero(np.concatenate([[True], np.diff(owner) > 0]))
    last = np.concatenate([first[1:], [len(owner)]]) - 1
    counts = last - first + 1
    return tuple(
        np.stack([values[first, 0], values[last, 1]], 1)
        if values.ndim == 2
        else (np.add.reduceat(values, first) / counts).astype(values.dtype)
        for values in of_words
    )


def words_in_frames(
    aligned: AlignedWords, frames: int, rate: Fraction
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Words with frames to themselves: spans int32 [V, 2], chars int32 [V, 2], scores float32 [V], letter ends."""
    spans, owner = to_frames(aligned.seconds, frames, rate)
    chars = np.zeros((len(spans), 2), np.int32)
    scores = np.zeros(len(spans), np.float32)
    letters: list[np.ndarray] = []
    ends = np.concatenate([[0], np.cumsum(aligned.letter_counts)])  # [W + 1], letters before each word
    for word in range(len(spans)):
        members = np.flatnonzero(owner == word)  # words of the transcript that share its frames
        chars[word] = aligned.chars[members[0], 0], aligned.chars[members[-1], 1]
        scores[word] = aligned.scores[members].mean()
        if len(aligned.letter_counts):
            letters.append(aligned.letters[ends[members[0]] : ends[members[-1] + 1]])
    return spans, chars, scores, letters


def _lay_out(pieces: list[AlignedPiece], rate: Fraction, between: str) -> _Run:
    texts, frames, chars, scores = [], [], [], []
    letters: list[np.ndarray] = []
    at_frame = at_char = 0
    for piece in pieces:
        spans, places, values, times = words_in_frames(piece.aligned, len(piece.speech_ids), rate)
        frames.append(spans + at_frame)
        chars.append(places + at_char)
        scores.append(values)
        letters += [time * float(rate) + at_frame for time in times]
        texts.append(piece.entry.text)
        at_frame += len(piece.speech_ids)
        at_char += len(piece.entry.text) + len(between)
    return _Run(
        between.join(texts),
        np.concatenate([piece.speech_ids for piece in pieces]),
        np.concatenate(frames),
        np.concatenate(chars),
        np.concatenate(scores),
        letters,
    )


def piece_frames(
    tokenizer: Tokenizer, token_ids: np.ndarray, word_tokens: np.ndarray, frames: np.ndarray, letters: list[np.ndarray]
) -> np.ndarray:
    """Frames of each text piece: a word's frames divided where the letters of its pieces end.

    A piece's letters are those of its surface; where the spoken form has another number of letters (`1611`), shares of
    it are taken. Pieces without letters (punctuation) and pieces shorter than a frame may be empty.

    Args:
        frames: int32 [W, 2], spans of the words.
        letters: per word, the frame (fractional) in which each letter ends; an empty list gives no frames.

    Returns:
        int32 [P, 2]; the pieces of a word partition its span. int32 [0, 2] without letters.
    """
    if not letters:
        return np.zeros((0, 2), np.int32)
    out = np.zeros((len(token_ids), 2), np.int32)
    for (first, last), (begin, end), ends in zip(word_tokens, frames, letters, strict=True):
        counts = [sum(map(str.isalnum, tokenizer.decode([int(i)]))) for i in token_ids[first:last]]
        total, seen, at = max(sum(counts), 1), 0, int(begin)  # letters of the word, those so far, the frame so far
        for piece, count in zip(range(first, last), counts, strict=True):
            seen += count
            stop = int(end)
            if piece < last - 1 and seen < total and len(ends):
                share = int(np.ceil(seen / total * len(ends)))  # spoken letters that belong to the pieces so far
                stop = int(np.clip(round(float(ends[share - 1])) if share else at, at, end))
            out[piece] = at, stop
            at = stop
    return out


def _cuts(frames: np.ndarray, total: int, longest: int) -> list[tuple[int, int, int, int]]:
    """Cut a run into parts of at most `longest` frames, each time at the longest pause in the last half.

    Returns:
        (first word, last word + 1, first frame, last frame + 1) of each part.
    """
    parts: list[tuple[int, int, int, int]] = []
    word = frame = 0
    while total - frame > longest:
        ends, begins = frames[word:-1, 1], frames[word + 1 :, 0]  # of the pause behind each word
        fits = np.flatnonzero((ends - frame <= longest) & (begins - frame > 0))  # pauses that a part can reach
        if not len(fits):
            break
        late = fits[ends[fits] - frame > longest // 2]  # those in its last half
        options = late if len(late) else fits[-1:]
        best = int(options[np.argmax((begins - ends)[options])])
        cut = int(min((ends[best] + begins[best] + 1) // 2, frame + longest))  # the middle of the pause
        parts.append((word, word + best + 1, frame, cut))
        word, frame = word + best + 1, cut
    parts.append((word, len(frames), frame, min(total, frame + longest) if parts else total))
    return parts


_OVERLAP = 0.1
"""Seconds that a piece may begin before the end of the last one: times are rounded."""


def _follows(entry: Entry, reached: dict[str, float]) -> bool:
    """Whether a piece lies behind what its run has of the same file; one that goes back or overlaps begins another."""
    return (entry.start or 0.0) >= reached.get(entry.audio, 0.0) - _OVERLAP


def documents(
    pieces: Iterable[AlignedPiece | None],
    tokenizer: Tokenizer,
    max_seconds: float,
    rate: Fraction,
    between: str = " ",
    timed: bool = True,
) -> Iterator[Document]:
    """Documents of one recording.

    Args:
        pieces: the recording's pieces in order; None stands for a rejected one: what is around it is not joined. Nor
            are pieces of one file that go backwards or overlap.
        max_seconds: longest document.
        rate: frames a second.
        between: what stands between the texts of two pieces.
        timed: words have times; else each piece has its transcript as one, and is a segment of the document.

    Yields:
        Documents named after the recording, with `/0`, `/1`... when there are several.

    Raises:
        Rejection: `tokenizer`.
    """
    runs: list[list[AlignedPiece]] = [[]]
    reached: dict[str, float] = {}  # of each audio file, where the run has come to
    for piece in pieces:
        if piece is None or not _follows(piece.entry, reached):
            runs.append([])
            reached = {}
        if piece is not None:
            runs[-1].append(piece)
            end = piece.entry.end
            reached[piece.entry.audio] = float("inf") if end is None else end
    longest = int(max_seconds * rate)
    found: list[Document] = []
    for members in filter(None, runs):
        run, entry = _lay_out(members, rate, between), members[0].entry
        for first, last, begin, end in _cuts(run.frames, len(run.speech_ids), longest):
            frames, chars = run.frames[first:last] - begin, run.chars[first:last]
            frames = np.clip(frames, 0, end - begin)
            low, high = (int(chars[0, 0]) if first else 0), int(chars[-1, 1])
            if last == len(run.frames):
                high = len(run.text)
            text = run.text[low:high]
            token_ids, word_tokens, owner = encode_runs(tokenizer, run.text, chars)
            letters, scores = [ends - begin for ends in run.letters[first:last]], run.scores[first:last]
            if len(word_tokens) < len(chars):  # words without spaces between them that share a piece
                frames, chars, scores = _joined(owner, frames, chars, scores)
                letters = (
                    [np.concatenate([letters[i] for i in np.flatnonzero(owner == word)]) for word in range(len(chars))]
                    if letters
                    else []
                )
            document = Document(
                id=entry.recording,
                source=entry.source,
                speaker=entry.speaker,
                license=entry.license,
                text=text,
                speech_ids=run.speech_ids[begin:end].astype(np.int16),
                token_ids=token_ids,
            )
            spans = frames.astype(np.int32)
            if timed:
                document = replace(
                    document,
                    word_frames=spans,
                    word_tokens=word_tokens,
                    word_chars=(chars - low).astype(np.int32),
                    word_scores=scores.astype(np.float32),
                    piece_frames=piece_frames(tokenizer, token_ids, word_tokens, frames, letters),
                )
            else:
                document = replace(document, segment_frames=spans, segment_tokens=word_tokens)
            found.append(document)
    for index, document in enumerate(found):
        if len(found) > 1:
            object.__setattr__(document, "id", f"{document.id}/{index}")
        yield document
