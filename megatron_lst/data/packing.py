"""An example into rows: how much of it fits, where it is cut, and where its rest goes on (SPEC 1, 6.4).

A document that does not fit is cut before a word, so that no word is lost or repeated: the chunk ends there, and the
rest is a new chunk of the next row with BOS, its marker and a fresh patch phase.  What a chunk is made of is the
business of `patching.chunks`; here is only how much of it there is room for.
"""

from dataclasses import dataclass

import numpy as np

from megatron_lst.data.interleaving import PLAIN, SPEECH, TEXT, Example
from megatron_lst.errors import UserError
from megatron_lst.patching.chunks import ChunkBuilder
from megatron_lst.patching.row import Chunk
from megatron_lst.patching.strategies import ALIGNED, Patcher, Patches, single_patches
from megatron_lst.vocabulary import Vocabulary


@dataclass(frozen=True)
class Position:
    """Where the rest of an example begins: `at` is a text piece or a frame, within span number `span`."""

    span: int
    at: int


@dataclass(frozen=True)
class Capacity:
    """What is left of a row: units, and tokens beyond one a unit (those of N_cap - U that are not used yet)."""

    units: int
    excess: int

    def holds(self, units: np.ndarray | int, tokens: np.ndarray | int) -> np.ndarray:
        """Whether so many units with so many tokens fit. ints, or int [n] -> bool of the same shape."""
        return np.asarray((np.asarray(units) <= self.units) & (np.asarray(tokens) - units <= self.excess))

    def less(self, units: int, tokens: int) -> "Capacity":
        """What is left behind so many units with so many tokens."""
        return Capacity(self.units - units, self.excess - (tokens - units))


@dataclass(frozen=True)
class PackedChunk:
    """A chunk, where the example goes on (None: it is finished), and what the chunk holds.

    `raw_tokens` is its size in the mixture's weights: its tokens, where a frame counts as one whatever its codebooks.
    """

    chunk: Chunk
    rest: Position | None
    speech: bool
    aligned: bool
    clipped: int
    raw_tokens: int


def first_position(example: Example) -> Position:
    return Position(0, int(example.spans[0, 1]))


def pack_example(
    example: Example, start: Position, patcher: Patcher, capacity: Capacity, vocabulary: Vocabulary, row_is_empty: bool
) -> PackedChunk | None:
    """As much of an example as there is room for, from `start` on.

    Args:
        patcher: how its speech is cut, what `PatchingSchedule.choose` returned.
        row_is_empty: nothing stands in the row yet: then a word that is longer than a whole row is cut within.

    Returns:
        None when not even its first word fits (for a `whole` example: when it does not fit entirely).

    Raises:
        UserError: nothing fits into an empty row.
    """
    document, last = example.document, len(example.spans) - 1
    builder = ChunkBuilder(vocabulary)
    clipped = frames = 0
    depth = document.depth

    def free() -> Capacity:
        return capacity.less(builder.units, builder.tokens)

    def add(number: int, kind: int, begin: int, patches: Patches) -> None:
        """A marker and the span's tokens from `begin` on, as many as the patches hold."""
        nonlocal clipped, frames
        count = int(patches.length.sum())
        marker, tokens = (True, True) if example.learnt is None else example.learnt[number].tolist()
        if kind != PLAIN:
            builder.learning = marker
            builder.marker("text" if kind == TEXT else "speech")
        builder.learning = tokens
        if kind == SPEECH:
            builder.speech(document.speech_ids[begin : begin + count // depth], patches)
            frames += count // depth  # count tokens are count / Q frames
            clipped += int(np.count_nonzero(patches.clipped))
        else:
            builder.text(document.token_ids[begin : begin + count])

    def packed(rest: Position | None) -> PackedChunk:
        chunk = builder.build(document.id)
        raw_tokens = len(chunk.tokens) - frames * (depth - 1)  # a frame of Q tokens counts as one
        return PackedChunk(chunk, rest, frames > 0, frames > 0 and patcher.method == ALIGNED, clipped, raw_tokens)

    for number in range(start.span, last + 1):
        kind, begin, end = (int(x) for x in example.spans[number])
        begin = start.at if number == start.span else begin  # only the first span may have begun in an earlier row
        if kind == SPEECH:
            words = patcher.segments(document, begin, end)  # in frames, as begin and end
            patches = patcher.cut((end - begin) * depth, None if words is None else words * depth)
        else:
            # Of a text, more than the row can hold need not be built.
            patches = single_patches(min(end - begin, free().units + 1))
        step = depth if kind == SPEECH else 1  # tokens of what positions count
        marker, eos = int(kind != PLAIN), int(example.eos and number == last)  # units, and tokens, of one each
        count = int(patches.length.sum())
        # The whole span, and EOS where it is the last one.
        if free().holds(len(patches.length) + marker + eos, count + marker + eos):
            add(number, kind, begin, patches)
            continue
        if example.whole:
            return None
        # Only a part of it: as many words as fit behind its marker.
        room = free().less(marker, marker)
        count = _cut_at_word(example, kind, begin, end, patches, room)
        if count:
            add(number, kind, begin, patches.head(count))
            return packed(Position(number, begin + count // step))
        # Not one word: the chunk ends with the span before, and the next row begins with this one.
        if number > start.span:
            return packed(Position(number, begin))
        if not row_is_empty:
            return None
        # A word that is longer than an empty row is cut within, or no row would ever hold it.
        count = _cut_at_unit(patches, (end - begin) * step, step, room)
        if not count:
            raise UserError(
                f"document {document.id!r}: its first patch ({int(patches.length[0])} tokens) does not fit into an "
                f"empty row; raise data.units or data.tokens"
            )
        add(number, kind, begin, patches.head(count))
        return packed(Position(number, begin + count // step))
    if example.eos:
        builder.single(vocabulary.eos)
    return packed(None)


def _cut_at_word(example: Example, kind: int, begin: int, end: int, patches: Patches, room: Capacity) -> int:
    """Most tokens of a span that end before a word and fit into `room`; 0 when there are none.

    Where words have no times, speech is cut at any unit; text without words, at any piece.
    """
    document = example.document
    step = document.depth if kind == SPEECH else 1
    spans = document.word_frames if kind == SPEECH else document.word_tokens
    if not len(spans):
        if kind == SPEECH:
            return _cut_at_unit(patches, (end - begin) * step, step, room)
        return max(0, min(end - begin - 1, room.units))  # not the last piece: it would be all of the span
    words = spans[:, 0]  # [all words], where each begins
    low, high = np.searchsorted(words, [begin + 1, end], side="left")  # those that begin within, not at its begin
    tokens = (words[low:high] - begin) * step  # [w], tokens before each word's first one
    tokens = tokens[tokens <= int(patches.length.sum())]  # of a text, only the head has patches
    starts = np.cumsum(patches.length) - patches.length  # [m]
    units = np.searchsorted(starts, tokens, side="left")  # [w], patches that these tokens touch
    # Both counts grow with the word, so the words that fit are the first ones.
    fitting = int(np.count_nonzero(room.holds(units, tokens)))
    return int(tokens[fitting - 1]) if fitting else 0


def _cut_at_unit(patches: Patches, tokens: int, step: int, room: Capacity) -> int:
    """Most tokens that end at a unit and with a whole frame, fit into `room` and are not all of the span; 0: none."""
    ends = np.cumsum(patches.length)  # [m]
    fitting = room.holds(np.arange(1, len(ends) + 1), ends) & (ends < tokens) & (ends % step == 0)
    return int(ends[np.flatnonzero(fitting)[-1]]) if fitting.any() else 0
