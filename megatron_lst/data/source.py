"""What the stream needs of a shard set, and several sets joined into one source."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import xxhash

from megatron_lst.documents.schema import Document


class DocumentSet(Protocol):
    """Random access to documents that lie in shards. `documents.shards.ShardSet` is the one on disk.

    Attributes:
        shard_first: int64 [shards + 1], index of each shard's first document, then len(self).
        raw_tokens: int64 [len(self)], size of each document, known without opening a shard.
        shard_bytes: int64 [shards], size of each shard as stored.
    """

    shard_first: np.ndarray
    raw_tokens: np.ndarray
    shard_bytes: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Changes when a document does."""
        ...

    def __len__(self) -> int: ...

    def get(self, i: int) -> Document:
        """Document i. Raises DamagedDataError naming the shard when it cannot be read."""
        ...


class DocumentList:
    """Documents in memory, as if they lay in shards of `per_shard` documents."""

    def __init__(self, documents: Sequence[Document], per_shard: int = 16) -> None:
        self._documents = list(documents)
        count = len(self._documents)
        self.shard_first = np.append(np.arange(0, count, per_shard), count).astype(np.int64)
        self.raw_tokens = np.array([d.raw_tokens for d in self._documents], np.int64)
        sizes = np.array([d.speech_ids.nbytes + d.token_ids.nbytes for d in self._documents], np.int64)
        self.shard_bytes = np.add.reduceat(sizes, self.shard_first[:-1])

    @property
    def fingerprint(self) -> str:
        digest = xxhash.xxh3_64()
        for document in self._documents:
            digest.update(document.id.encode())
            digest.update(np.ascontiguousarray(document.speech_ids).tobytes())
            digest.update(np.ascontiguousarray(document.token_ids).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._documents)

    def get(self, i: int) -> Document:
        return self._documents[i]


class JoinedSets:
    """Several document sets one after the other.

    Attributes:
        shard_first, shard_bytes: as in `DocumentSet`, over all sets.
        shard_tokens: int64 [shards], raw tokens of each. There is no table of all documents: sets have theirs mapped,
            and one that joins them would be a copy in every process.
    """

    def __init__(self, sets: Iterable[DocumentSet]) -> None:
        self.sets = list(sets)
        self._first = np.concatenate([[0], np.cumsum([len(s) for s in self.sets])]).astype(np.int64)
        firsts = [s.shard_first[:-1] + offset for s, offset in zip(self.sets, self._first, strict=False)]
        self.shard_first = np.concatenate([*firsts, self._first[-1:]]).astype(np.int64)
        self.shard_tokens = np.concatenate([_tokens_by_shard(s) for s in self.sets])
        self.shard_bytes = np.concatenate([s.shard_bytes for s in self.sets]).astype(np.int64)

    @property
    def fingerprint(self) -> str:
        return xxhash.xxh3_64_hexdigest(" ".join(s.fingerprint for s in self.sets))

    def __len__(self) -> int:
        return int(self._first[-1])

    def locate(self, i: int) -> tuple[DocumentSet, int]:
        """The set that holds document i, and its index there."""
        place = int(np.searchsorted(self._first, i, side="right")) - 1
        return self.sets[place], i - int(self._first[place])

    def tokens_of(self, first: int, last: int) -> np.ndarray:
        """int64 [last - first], raw tokens of documents `first` to `last` - 1, which lie in one shard."""
        held, local = self.locate(min(first, len(self) - 1))  # a shard without documents may stand at the end
        return held.raw_tokens[local : local + last - first]

    @property
    def mean_tokens(self) -> float:
        """Raw tokens of a document."""
        return int(self.shard_tokens.sum()) / len(self)

    def shard_of(self, i: int) -> int:
        """Ordinal of the shard that holds document i, over all sets."""
        return int(np.searchsorted(self.shard_first, i, side="right")) - 1

    def get(self, i: int) -> Document:
        held, local = self.locate(i)
        return held.get(local)


def _tokens_by_shard(documents: DocumentSet) -> np.ndarray:
    """int64 [shards], raw tokens of each. Shard by shard, so that no table of documents is copied."""
    bounds = zip(documents.shard_first[:-1].tolist(), documents.shard_first[1:].tolist(), strict=True)
    return np.array([documents.raw_tokens[first:last].sum() for first, last in bounds], np.int64)
