"""A visit into rows: how much of it fits, where it is cut, and where its rest goes on (SPEC 1, 6.4).

A document that does not fit is cut before a word, so that no word is lost or repeated: the chunk ends there, and the
rest is a new chunk of the next row with BOS, its marker and a fresh patch phase.
"""

from dataclasses import dataclass

import numpy as np

from megatron_lst.data.interleaving import PLAIN, SPEECH, TEXT, Visit
from megatron_lst.errors import UserError
from megatron_lst.patching.row import Chunk
from megatron_lst.patching.strategies import ALIGNED, Patcher, Patches, single_patches
from megatron_lst.vocabulary import Vocabulary


@dataclass(frozen=True)
class Place:
    """Where the rest of a visit begins: `at` is a text piece or a frame, within span number `span`."""

    span: int
    at: int


@dataclass(frozen=True)
class Room:
    """What is left of a row: units, and tokens beyond one a unit (those of N_cap - U that are not used yet)."""

    units: int
    excess: int


@dataclass(frozen=True)
class Laid:
    """A chunk, where the visit goes on (None: it is finished), and what the chunk holds."""

    chunk: Chunk
    rest: Place | None
    speech: bool
    aligned: bool
    clipped: int


def start_of(visit: Visit) -> Place:
    return Place(0, int(visit.spans[0, 1]))


def lay(
    visit: Visit, place: Place, kind: str, room: Room, patcher: Patcher, vocabulary: Vocabulary, empty: bool
) -> Laid | None:
    """As much of a visit as there is room for, from `place` on.

    Args:
        kind: how its speech is cut, what `Patcher.choose` returned.
        empty: nothing stands in the row yet: then a word that is longer than a whole row is cut within.

    Returns:
        None when not even its first word fits (for a `whole` visit: when it does not fit entirely).

    Raises:
        UserError: nothing fits into an empty row.
    """
    build = _Building(visit, room, vocabulary)
    last = len(visit.spans) - 1
    for number in range(place.span, last + 1):
        sort, begin, end = (int(x) for x in visit.spans[number])
        begin = place.at if number == place.span else begin
        if sort == SPEECH:
            patches = patcher.cut(kind, visit.document, begin, end)
        else:
            # More of a text than the row can hold need not be laid out.
            patches = single_patches(min(end - begin, room.units + 1))
        if build.fits(sort, patches, closing=number == last):
            build.add(sort, begin, patches)
            continue
        if visit.whole:
            return None
        frames = _word_cut(build, sort, begin, end, patches)
        if frames:
            build.add(sort, begin, patches.head(frames))
            return build.laid(Place(number, begin + frames), kind)
        if number > place.span:
            return build.laid(Place(number, begin), kind)
        if not empty:
            return None
        frames = _unit_cut(build, sort, patches, end - begin)
        build.add(sort, begin, patches.head(frames))
        return build.laid(Place(number, begin + frames), kind)
    build.close()
    return build.laid(None, kind)


def _word_cut(build: "_Building", sort: int, begin: int, end: int, patches: Patches) -> int:
    """Most tokens of a span that end before a word and fit; 0 when there are none."""
    document = build.visit.document
    if sort == SPEECH:
        words = document.word_frames[:, 0]
    elif len(document.word_tokens):
        words = document.word_tokens[:, 0]
    else:
        return max(0, min(end - begin - 1, build.room.units - (sort != PLAIN)))
    low, high = np.searchsorted(words, [begin + 1, end], side="left")
    tokens = words[low:high] - begin
    starts = np.cumsum(patches.length) - patches.length
    tokens = tokens[tokens <= int(patches.length.sum())]
    units = np.searchsorted(starts, tokens, side="left")
    fitting = (units + (sort != PLAIN) <= build.room.units) & (tokens - units <= build.room.excess)
    count = int(np.count_nonzero(fitting))
    return int(tokens[count - 1]) if count else 0


def _unit_cut(build: "_Building", sort: int, patches: Patches, tokens: int) -> int:
    """Most tokens that end at a unit and fit, short of the whole span: for words longer than a row."""
    ends = np.cumsum(patches.length)
    units = np.arange(1, len(ends) + 1)
    fitting = (units + (sort != PLAIN) <= build.room.units) & (ends - units <= build.room.excess) & (ends < tokens)
    if not fitting[0]:
        raise UserError(
            f"document {build.visit.document.id!r}: not one patch of it ({int(patches.length[0])} tokens) fits into an "
            f"empty row; raise data.units or data.tokens"
        )
    return int(ends[np.count_nonzero(fitting) - 1])


class _Building:
    """A chunk under construction. It begins with BOS; `room` is what remains."""

    def __init__(self, visit: Visit, room: Room, vocabulary: Vocabulary) -> None:
        self.visit = visit
        self.room = Room(room.units - 1, room.excess)
        self._vocabulary = vocabulary
        self._tokens: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._late: list[np.ndarray] = []
        self._single(vocabulary.bos)
        self._speech = False
        self._clipped = 0
        self._prompt = 0

    def _single(self, token: int) -> None:
        self._tokens.append(np.array([token], np.int32))
        self._lengths.append(np.ones(1, np.int32))
        self._late.append(np.zeros(1, bool))

    def fits(self, sort: int, patches: Patches, closing: bool) -> bool:
        units = len(patches.length)
        excess = int(patches.length.sum()) - units
        return units + (sort != PLAIN) + closing <= self.room.units and excess <= self.room.excess

    def add(self, sort: int, begin: int, patches: Patches) -> None:
        """Append a marker and the span's tokens from `begin` on, as many as the patches hold."""
        vocabulary, document = self._vocabulary, self.visit.document
        units, count = len(patches.length), int(patches.length.sum())
        if sort != PLAIN:
            self._prompt = sum(map(len, self._tokens))
            self._single(vocabulary.text_marker if sort == TEXT else vocabulary.speech_marker)
        if sort == SPEECH:
            self._tokens.append(document.speech_ids[begin : begin + count].astype(np.int32) + vocabulary.text_size)
            self._speech = True
            self._clipped += int(np.count_nonzero(patches.clipped))
        else:
            self._tokens.append(document.token_ids[begin : begin + count])
        self._lengths.append(patches.length)
        self._late.append(patches.late)
        self.room = Room(self.room.units - units - (sort != PLAIN), self.room.excess - (count - units))

    def close(self) -> None:
        self._single(self._vocabulary.eos)
        self.room = Room(self.room.units - 1, self.room.excess)

    def laid(self, rest: Place | None, kind: str) -> Laid:
        chunk = Chunk(
            np.concatenate(self._tokens),
            np.concatenate(self._lengths),
            np.concatenate(self._late),
            self.visit.document.id,
            prompt=self._prompt if self.visit.whole else 0,
        )
        return Laid(chunk, rest, self._speech, self._speech and kind == ALIGNED, self._clipped)
