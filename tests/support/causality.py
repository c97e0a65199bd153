"""Probes that show whether a model reads its future (SPEC 4, T1, T1b, T3, T6). They run on any implementation.

A model is a callable from a row to logits [N, V]; a probe returns the positions at which it caught a leak, so that a
right model gives an empty list and each wrong closing map a non-empty one.  Compared rows always have the same N and
U, so that every matrix product has the same shape and equality can be asked bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from megatron_lst.patching.chunks import chunk_of_tokens
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.patching.strategies import Patches, aligned_patches, static_patches
from megatron_lst.vocabulary import Vocabulary

Logits = Callable[[Row], np.ndarray]
"""Row -> float [N, V]."""
ClosingMap = Callable[[Row], np.ndarray]
"""Row -> int32 [N], the map to use in place of c(t)."""
Kind = Literal["static", "aligned", "lagged"]


def spec_map(row: Row) -> np.ndarray:
    return row.closed


def own_unit_map(row: Row) -> np.ndarray:
    """c(t) = u(t): every token reads its own patch, future tokens included. Must fail T1, T1b."""
    return row.unit


def literal_blt_map(row: Row) -> np.ndarray:
    """c(t) = u(t+1) - 1: leaks that a marker follows a truncated static patch. Must fail T1b and T3, passes T1."""
    return np.append(row.unit[1:] - 1, row.unit[-1]).astype(np.int32)


@dataclass
class Writer:
    """Writes one document chunk token by token, deciding its units as a reader of the prefix could.

    Attributes:
        kind: `static`: patches of `size`; `aligned`: segments that end where `end=True` says (side information);
            `lagged`: the same, closing one token late.
        tokens: so far.
        ended: whether an aligned segment ends after each of them.
    """

    vocabulary: Vocabulary
    kind: Kind
    size: int
    tokens: list[int] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)

    def other(self, token: int) -> None:
        """A token that is not speech: a unit of its own."""
        self.tokens.append(token)
        self.ended.append(True)

    def speech(self, unit: int, end: bool = False) -> None:
        """A speech token, by its id; `end`: an aligned segment ends after it."""
        self.tokens.append(self.vocabulary.text_size + unit)
        self.ended.append(end)

    @property
    def turn(self) -> int:
        """The codebook whose turn it is; 0 between frames."""
        return self.vocabulary.turn_after(self.tokens[-1])

    def code(self, number: int, ends: Callable[[], bool]) -> None:
        """A speech token of the codebook whose turn it is; aligned segments may end with a frame alone."""
        v, turn = self.vocabulary, self.turn
        self.speech(int(v.offsets[turn]) + number % v.codebook_sizes[turn])
        self.ended[-1] = self.turn == 0 and ends()

    @property
    def speaking(self) -> bool:
        last = self.tokens[-1]
        return bool(self.vocabulary.is_speech(np.array(last))) or last == self.vocabulary.speech_marker

    def ramble(self, rng: np.random.Generator, tokens: int, *, speech_first: bool = False) -> "Writer":
        """Append `tokens` random tokens (more, where a frame is open): text, speech, markers, spans from one frame."""
        v, count = self.vocabulary, len(self.tokens) + tokens

        def ends() -> bool:
            return self.kind != "static" and bool(rng.random() < 0.35)

        first = True
        while len(self.tokens) < count or self.turn:
            going = bool(self.turn) or (first and speech_first)
            first = False
            if self.speaking and (going or rng.random() < 0.75):
                self.code(int(rng.integers(v.speech_size)), ends)
            elif self.speaking:
                self.other(v.text_marker)
            elif rng.random() < 0.35:
                self.other(v.speech_marker)
            else:
                self.other(int(rng.integers(3, v.text_size)))
        return self

    def chunk(self, name: str = "") -> Chunk:
        return chunk_of_tokens(np.array(self.tokens, np.int32), self.vocabulary, self._cut, name)

    def _cut(self, begin: int, end: int) -> Patches:
        count = end - begin
        if self.kind == "static":
            return static_patches(count, self.size)
        ends = np.flatnonzero(self.ended[begin:end]) + 1
        edges = np.unique(np.concatenate([[0], ends, [count]]))
        segments = np.stack([edges[:-1], edges[1:]], 1)
        return aligned_patches(count, segments, max_length=count + 1, lag=int(self.kind == "lagged"))


def random_chunk(rng: np.random.Generator, vocabulary: Vocabulary, kind: Kind, size: int, tokens: int) -> Chunk:
    """A document of about `tokens` tokens: text alone or interleaved, ended by EOS or cut anywhere."""
    writer = Writer(vocabulary, kind, size)
    writer.other(vocabulary.bos)
    if rng.random() < 0.8:
        writer.other(vocabulary.speech_marker if rng.random() < 0.7 else vocabulary.text_marker)
    writer.ramble(rng, max(0, tokens - 3))
    if rng.random() < 0.7:
        writer.other(vocabulary.eos)
    return writer.chunk("random")


def rewrite_from(
    chunk: Chunk, offset: int, kind: Kind, size: int, rng: np.random.Generator, vocabulary: Vocabulary, tokens: int
) -> Chunk:
    """The same chunk up to `offset` (exclusive, at least 1), then `tokens` random tokens and perhaps EOS.

    What the prefix tells is kept: tokens, and for `aligned` whether a segment ended at the cut (side information).
    """
    ends = np.cumsum(chunk.patch_length)
    writer = Writer(vocabulary, kind, size)
    for t in range(offset):
        token = int(chunk.tokens[t])
        if vocabulary.is_speech(chunk.tokens[t]):
            writer.speech(token - vocabulary.text_size, end=kind != "static" and t + 1 in ends and t + 1 < offset)
        else:
            writer.other(token)
    if kind == "aligned" and offset in ends:
        writer.ended[-1] = True
    if kind == "aligned" and not writer.ended[-1]:  # the segment goes on: known from the aligner
        writer.ramble(rng, max(1, tokens), speech_first=True)
    else:
        writer.ramble(rng, tokens)
    if rng.random() < 0.6:
        writer.other(vocabulary.eos)
    return writer.chunk(chunk.document_id)


def same_shape(rows: list[list[Chunk]], size: int, vocabulary: Vocabulary) -> list[Row]:
    """Rows of equal N and U from lists of chunks: each gets a last document `BOS <s> speech...` that evens them out.

    Padding adds one token a unit; speech patches add more tokens than units.
    """
    assert size > 1, "patches of one token cannot absorb tokens"
    surplus = [sum(len(c.tokens) - len(c.patch_length) for c in chunks) for chunks in rows]
    filled = []
    for chunks, own in zip(rows, surplus, strict=True):
        writer = Writer(vocabulary, "static", size)
        writer.other(vocabulary.bos)
        writer.other(vocabulary.speech_marker)
        missing = max(surplus) - own
        for i in range(missing // (size - 1) * size + (missing % (size - 1) + 1 if missing % (size - 1) else 0)):
            writer.speech(i % vocabulary.speech_size)
        filled.append([*chunks, writer.chunk("filler")])
    units = max(sum(len(c.patch_length) for c in chunks) for chunks in filled) + 1
    result = [assemble_row(chunks, units, vocabulary) for chunks in filled]
    assert len({len(r.tokens) for r in result}) == 1
    return result


def future_violations(
    logits: Logits,
    chunks: list[Chunk],
    kind: Kind,
    size: int,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    closing: ClosingMap = spec_map,
    cuts: int = 4,
    tolerance: float = 0.0,
) -> list[int]:
    """T1b: rewrite everything from token tau on, modality included, recompute the maps; logits t < tau must stay.

    Args:
        chunks: the documents of a row, none of them padding.
        cuts: how many tau to try in each chunk.
        tolerance: largest absolute difference that counts as equal; 0 asks for equal bits.

    Returns:
        The positions t whose logits changed.
    """
    found = []
    for index, chunk in enumerate(chunks):
        length = len(chunk.tokens)
        for offset in rng.permutation(np.arange(1, length + 1))[:cuts].tolist():
            tail = int(rng.integers(0, 6))
            other = [*chunks[:index], rewrite_from(chunk, offset, kind, size, rng, vocabulary, tail)]
            one, two = same_shape([chunks, other], size, vocabulary)
            tau = sum(len(c.tokens) for c in chunks[:index]) + offset
            before = logits(replace(one, closed=closing(one)))[:tau]
            after = logits(replace(two, closed=closing(two)))[:tau]
            found.extend(np.flatnonzero((np.abs(before - after) > tolerance).any(-1)).tolist())
    return sorted(set(found))


def token_violations(
    logits: Logits,
    row: Row,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    closing: ClosingMap = spec_map,
    tries: int = 6,
    tolerance: float = 0.0,
) -> tuple[list[int], list[int]]:
    """T1: replace x_tau by another token of its modality under fixed maps.

    Returns:
        (positions t < tau that changed: leaks; positions tau that did not change: dead inputs).
    """
    row = replace(row, closed=closing(row))
    speech = vocabulary.is_speech(row.tokens)
    candidates = np.flatnonzero(speech | ((row.tokens >= 3) & (row.tokens < vocabulary.text_size)))
    before = logits(row)
    leaks, dead = [], []
    for tau in rng.permutation(candidates)[:tries].tolist():
        tokens = row.tokens.copy()
        low, count = 3, vocabulary.text_size - 3
        if speech[tau]:
            book = int(vocabulary.codebook_of(tokens[tau : tau + 1])[0])
            low, count = vocabulary.text_size + int(vocabulary.offsets[book]), vocabulary.codebook_sizes[book]
        tokens[tau] = low + (tokens[tau] - low + 1 + rng.integers(count - 1)) % count
        changed = (np.abs(logits(replace(row, tokens=tokens)) - before) > tolerance).any(-1)
        leaks.extend(np.flatnonzero(changed[:tau]).tolist())
        if not changed[tau]:
            dead.append(tau)
    return sorted(set(leaks)), dead


def prefix_violations(chunk: Chunk, size: int, vocabulary: Vocabulary, closing: ClosingMap = spec_map) -> list[int]:
    """T3: the map at t must be the same whatever token comes after t (static patches of `size`).

    Returns:
        The positions t at which the map of the whole document differs from that of a prefix with another next token.
    """
    whole = closing(assemble_row([chunk], len(chunk.patch_length), vocabulary))
    found = []
    for t in range(len(chunk.tokens)):
        for following in ("speech", "marker", "end"):
            writer = Writer(vocabulary, "static", size)
            for token in chunk.tokens[: t + 1].tolist():
                if vocabulary.is_speech(np.array(token)):
                    writer.speech(token - vocabulary.text_size)
                else:
                    writer.other(token)
            if following == "speech" and not writer.speaking:
                continue
            if following == "speech":
                writer.speech(0)
            else:
                writer.other(vocabulary.eos if following == "end" else vocabulary.text_marker)
            prefix = writer.chunk()
            row = assemble_row([prefix], len(prefix.patch_length), vocabulary)
            if not np.array_equal(closing(row)[: t + 1], whole[: t + 1]):
                found.append(t)
                break
    return found


def document_violations(
    logits: Logits, row: Row, vocabulary: Vocabulary, rng: np.random.Generator, tolerance: float = 0.0
) -> list[int]:
    """T6: replace every speech and text token of one packed document; positions of the others must not change."""
    before = logits(row)
    found = []
    for document in range(int(row.document[-1]) + 1):
        inside = row.document == document
        speech = inside & vocabulary.is_speech(row.tokens)
        text = inside & (row.tokens >= 3) & (row.tokens < vocabulary.text_size)
        tokens = row.tokens.copy()
        book = vocabulary.codebook_of(tokens[speech])
        codes = rng.integers(vocabulary.speech_size, size=len(book)) % np.array(vocabulary.codebook_sizes)[book]
        tokens[speech] = vocabulary.text_size + vocabulary.offsets[book] + codes
        tokens[text] = rng.integers(3, vocabulary.text_size, size=int(text.sum()))
        changed = (np.abs(logits(replace(row, tokens=tokens)) - before) > tolerance).any(-1)
        found.extend(np.flatnonzero(changed & ~inside).tolist())
    return sorted(set(found))
