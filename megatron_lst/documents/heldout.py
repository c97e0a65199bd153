"""The one place that keeps training, validation and evaluation text apart.

Text is compared as a sequence of `words`: case, punctuation, white space and accents of Latin letters do not count, the
vowel signs of other scripts do. A training text holds held-out text where it has, somewhere in it,

  - a run of WINDOW words that a held-out text has, too;
  - a held-out sentence, or a whole held-out text, of at least ANYWHERE words, as consecutive words;
  - a shorter held-out sentence as a sentence of its own.

So punctuation is needed on neither side, but for the short ones: "He said." is held out wherever somebody says no more
than that, not in every text that has these two words. Words of scripts without spaces count by the character, see
`words.WEIGHTS`. What this does and does not find is measured in docs/data-prep.md.
"""

import base64
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from megatron_lst.documents.words import WEIGHTS, Words, normalise_text, sentence_spans
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import write_text

__all__ = ["ANYWHERE", "WINDOW", "HeldOut", "normalise_text", "sentence_spans"]

WINDOW, ANYWHERE = 13, 5
"""In words of a spaced script; 16 and 6 Chinese characters, 26 and 10 kana, 39 and 15 Thai ones."""

_LONGEST_CUT = 100
"""Words of a sentence that is cut as a whole where a part of it is held out; of a longer one (a text without
punctuation) that part only."""

_BASE, _UNBASE = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 1 << 64)
_VERSION = 2
_ARRAYS = ("sentences", "passages", "starts", "windows")
_MERGE_AT = 1 << 20


class _Powers:
    """Powers of _BASE and of its inverse modulo 2^64, as many as the longest text so far has words."""

    def __init__(self) -> None:
        self.up, self.down = np.ones(1, np.uint64), np.ones(1, np.uint64)

    def reach(self, count: int) -> None:
        if len(self.up) < count:
            size = max(count, 2 * len(self.up))
            self.up, self.down = (
                np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size - 1, base, np.uint64)]))
                for base in (_BASE, _UNBASE)
            )


_POWERS = _Powers()


class _Sequence:
    """A text's words, with the hash of any run of them at the price of a multiplication."""

    def __init__(self, text: str) -> None:
        self.words = Words.of(text)
        count = len(self.words.codes)
        _POWERS.reach(count + 1)
        terms = self.words.codes * _POWERS.up[:count]  # uint64 [T], word i times base^i, modulo 2^64
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])  # [T + 1]
        self.weight = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.words.weights())])  # [T + 1]

    def __len__(self) -> int:
        return len(self.words.codes)

    def hashes(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """uint64, of words [first, last)."""
        return (self._sums[last] - self._sums[first]) * _POWERS.down[first]  # the same wherever the run stands

    def runs(self, words: int) -> tuple[np.ndarray, np.ndarray]:
        """(first, last) of the shortest run from each word on that counts `words` words of a spaced script."""
        last = np.searchsorted(self.weight, self.weight[:-1] + words * WEIGHTS[0])
        first = np.flatnonzero(last <= len(self))  # runs that end within the text
        return first, last[first]


class _Hashes:
    """A growing set of 64-bit hashes: 8 bytes each, and a table of bits that answers most questions."""

    def __init__(self, values: np.ndarray | None = None) -> None:
        self._sorted = np.zeros(0, np.uint64) if values is None else np.unique(values.astype(np.uint64))
        self._new: list[np.ndarray] = []
        self._pending = 0
        self._table: np.ndarray | None = None

    def add(self, values: np.ndarray) -> None:
        self._new.append(values)
        self._pending += len(values)
        if self._pending > max(_MERGE_AT, len(self._sorted)):
            self.array()

    def array(self) -> np.ndarray:
        """uint64, sorted."""
        if self._new:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._new]))
            self._new, self._pending, self._table = [], 0, None
        return self._sorted

    def __len__(self) -> int:
        return len(self.array())

    def have(self, values: np.ndarray) -> np.ndarray:
        """bool, which of `values` are in the set."""
        mine = self.array()
        if not len(mine) or not len(values):
            return np.zeros(len(values), bool)
        if self._table is None:
            bits = min(max(int(np.ceil(np.log2(len(mine)))) + 3, 10), 28)  # at most about one in eight is set
            self._shift = np.uint64(64 - bits)
            self._table = np.zeros(1 << bits, bool)
            self._table[mine >> self._shift] = True  # by the upper bits of each hash
        found = self._table[values >> self._shift]
        at = np.flatnonzero(found)  # those that the table does not rule out
        place = np.minimum(np.searchsorted(mine, values[at]), len(mine) - 1)
        found[at] = mine[place] == values[at]
        return found


class HeldOut:
    """Text that must not be trained on, as hashes."""

    def __init__(self) -> None:
        self._sets = {name: _Hashes() for name in _ARRAYS}
        self._lengths: set[int] = set()
        self._old: set[str] = set()

    def __len__(self) -> int:
        """Held-out sentences."""
        return len(self._sets["sentences"]) + len(self._old)

    def __bool__(self) -> bool:
        return len(self) > 0

    def add(self, text: str) -> None:
        """Hold out every sentence of `text`, and every run of WINDOW words in it."""
        sequence = _Sequence(text)
        if not len(sequence):
            return
        first, last = sequence.words.sentences[:-1], sequence.words.sentences[1:]
        whole = np.array([0]), np.array([len(sequence)])
        self._sets["sentences"].add(sequence.hashes(first, last))
        self._sets["passages"].add(sequence.hashes(*whole))
        self._sets["windows"].add(sequence.hashes(*sequence.runs(WINDOW)))
        begins, ends = sequence.runs(ANYWHERE)
        for low, high in ((first, last), whole):
            weight = sequence.weight[high] - sequence.weight[low]
            short = (weight >= ANYWHERE * WEIGHTS[0]) & (weight < WINDOW * WEIGHTS[0])  # no window of it is in the list
            low, high = low[short], high[short]
            at = np.searchsorted(begins, low)  # the run of ANYWHERE words that each begins with
            self._sets["starts"].add(sequence.hashes(begins[at], ends[at]))
            self._lengths.update((high - low).tolist())

    def update(self, other: "HeldOut") -> None:
        """Hold out what `other` holds out, too."""
        for name, hashes in self._sets.items():
            hashes.add(other._sets[name].array())
        self._lengths |= other._lengths
        self._old |= other._old

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Half-open character spans of what has to be cut out of `text`, in order: the sentences that held-out text
        reaches into. Of a sentence of more than 100 words, the held-out words alone."""
        found = _old_spans(text, self._old) if self._old else []
        sequence = _Sequence(text)
        if len(sequence):
            marks = self._marks(sequence)
            if marks is not None:
                found += _grown(sequence, marks, text)
        return _merged(found)

    def _marks(self, sequence: _Sequence) -> np.ndarray | None:
        """bool [T], the words that are held out; None: none is."""
        first, last = sequence.words.sentences[:-1], sequence.words.sentences[1:]
        found = [(first, last, self._sets["sentences"].have(sequence.hashes(first, last)))]
        whole = np.array([0]), np.array([len(sequence)])
        found.append((*whole, self._sets["passages"].have(sequence.hashes(*whole))))
        first, last = sequence.runs(WINDOW)
        found.append((first, last, self._sets["windows"].have(sequence.hashes(first, last))))
        first, last = sequence.runs(ANYWHERE)
        first = first[self._sets["starts"].have(sequence.hashes(first, last))]  # where a short one may begin
        for length in self._lengths if len(first) else ():
            low = first[first + length <= len(sequence)]
            hashes = sequence.hashes(low, low + length)
            held = self._sets["sentences"].have(hashes) | self._sets["passages"].have(hashes)
            found.append((low, low + length, held))
        edges = np.zeros(len(sequence) + 1, np.int64)  # +1 where a held-out run begins, -1 behind its end
        hit = False
        for low, high, held in found:
            if held.any():
                hit = True
                np.add.at(edges, low[held], 1)
                np.add.at(edges, high[held], -1)
        return np.cumsum(edges)[:-1] > 0 if hit else None

    def find(self, text: str) -> list[str]:
        """The stretches of `text` that are held out."""
        return [text[a:b] for a, b in self.spans(text)]

    def remove(self, text: str) -> tuple[list[str], int]:
        """Cut held-out text out of `text`.

        Returns:
            The stretches of text that remain, in order (cut where something was removed, so that what was not
            adjacent never becomes so), and the number of stretches removed.
        """
        spans = self.spans(text)
        if not spans:
            return ([text] if text.strip() else []), 0
        parts, removed, begin = list[str](), len(spans), 0
        for low, high in [*spans, (len(text), len(text))]:
            part = text[begin:low].strip()
            begin = high
            if len(Words.of(part).codes):
                again, more = self.remove(part)  # what was a part of a sentence may now be one by itself
                parts += again
                removed += more
        return parts, removed

    def assert_disjoint(self, texts: Iterable[tuple[str, str]]) -> int:
        """Check (id, text) pairs of training documents. Returns how many were checked.

        Raises:
            DamagedDataError: names the document and the sentence that is held out.
        """
        count = 0
        for name, text in texts:
            count += 1
            found = self.find(text)
            if found:
                raise DamagedDataError(f"training document {name!r} holds the held-out sentence {found[0][:300]!r}")
        return count

    def arrays(self) -> dict[str, np.ndarray]:
        """uint64 arrays by name, for a file; `from_arrays` reads them."""
        lengths = np.array(sorted(self._lengths), np.uint64)
        return {name: hashes.array() for name, hashes in self._sets.items()} | {"lengths": lengths}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "HeldOut":
        new = cls()
        new._sets = {name: _Hashes(arrays[name]) for name in _ARRAYS}
        new._lengths = {int(length) for length in arrays["lengths"]}
        return new

    def save(self, path: Path) -> None:
        packed = {name: base64.b64encode(array.astype("<u8").tobytes()) for name, array in self.arrays().items()}
        arrays = {name: text.decode() for name, text in packed.items()}
        content = {"kind": "lst-heldout", "version": _VERSION, "window": WINDOW, "anywhere": ANYWHERE, **arrays}
        write_text(path, json.dumps({**content, "hashes": sorted(self._old)}, indent=0))

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        """Lists of version 1 are read, too: they have hashes of whole sentences alone, and find no more than those.

        Raises UserError when the file is not a held-out list."""
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read the held-out list ({error})") from error
        if not isinstance(value, dict) or value.get("kind") != "lst-heldout":
            raise UserError(f"{path}: is not a held-out list")
        version = value.get("version")
        if version not in (1, _VERSION):
            raise UserError(f"{path}: a held-out list of version {version!r}; this program knows 1 and {_VERSION}")
        try:
            if version == 1:
                new = cls()
            elif (value["window"], value["anywhere"]) != (WINDOW, ANYWHERE):
                raise ValueError(f"made for runs of {value['window']} and {value['anywhere']} words")
            else:
                new = cls.from_arrays(
                    {name: np.frombuffer(base64.b64decode(value[name]), "<u8") for name in (*_ARRAYS, "lengths")}
                )
            new._old = set(value["hashes"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: a damaged held-out list ({type(error).__name__}: {error})") from error
        return new

    @property
    def of_whole_sentences(self) -> int:
        """Sentences that come from lists of version 1: they are found as whole sentences only."""
        return len(self._old)


def _grown(sequence: _Sequence, marks: np.ndarray, text: str) -> list[tuple[int, int]]:
    """Characters of the sentences that marked words lie in; of very long sentences, of the words."""
    spans: list[tuple[int, int]] = []
    characters: np.ndarray | None = None
    first = sequence.words.sentences
    for number in np.unique(np.searchsorted(first, np.flatnonzero(marks), side="right") - 1).tolist():
        low, high = int(first[number]), int(first[number + 1])
        if sequence.weight[high] - sequence.weight[low] <= _LONGEST_CUT * WEIGHTS[0]:
            begin, end = sequence.words.spans[number].tolist()
            spans.append((begin, end))
            continue
        if characters is None:
            characters = sequence.words.characters(text)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks[low:high], [0]]))).reshape(-1, 2) + low
        spans += [(int(characters[a, 0]), int(characters[b - 1, 1])) for a, b in edges]
    return spans


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, and those that overlap as one."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


# -- lists of version 1 -------------------------------------------------------------------------------------------

_OLD_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")
_OLD_GAP = re.compile(r"[^\w]+")


def _old_spans(text: str, hashes: set[str]) -> list[tuple[int, int]]:
    """Sentences whose hash, as version 1 made it, is in a list of that version."""
    ends = [(match.start(), match.end()) for match in _OLD_END.finditer(text)] + [(len(text), len(text))]
    found, begin = list[tuple[int, int]](), 0
    for end, after in ends:
        bare = text[begin:end].casefold()
        if not bare.isascii():
            bare = "".join(ch for ch in unicodedata.normalize("NFKD", bare) if not unicodedata.combining(ch))
        bare = _OLD_GAP.sub(" ", bare.replace("'", "").replace("’", "")).strip()
        if bare and xxhash.xxh3_128_hexdigest(bare.encode()) in hashes:
            found.append((begin, end))
        begin = after
    return found
