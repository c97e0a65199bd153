"""Which documents a stream owns and in which order it visits them: a keyed permutation in two levels (SPEC 6).

The shards of a source are permuted once and laid in a line, the line is cut into S intervals of equal raw tokens, and
each stream owns one: whole shards but for the two at its ends, so that a node downloads what it reads.  In every
stream-epoch the blocks (a stream's part of one shard) come in a new order, and the documents within each block too.
"""

from dataclasses import dataclass

import numpy as np

from megatron_lst.data.source import JoinedSets
from megatron_lst.draws import number_of, permutation
from megatron_lst.errors import UserError


@dataclass(frozen=True)
class Ownership:
    """The blocks of every stream.

    Attributes:
        begin, end: int64 [blocks], document interval of each block (within one shard).
        first: int64 [S + 1], each stream's first block.
    """

    begin: np.ndarray
    end: np.ndarray
    first: np.ndarray

    def of(self, stream: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = slice(int(self.first[stream]), int(self.first[stream + 1]))
        return self.begin[blocks], self.end[blocks]


def assign_documents(documents: JoinedSets, streams: int, seed: int, name: str) -> Ownership:
    """Cut the permuted line of shards into `streams` intervals of equal raw tokens.

    Every document belongs to exactly one stream, unless there are fewer documents than streams: then streams share
    documents, and each visits its own once per stream-epoch.
    """
    # The line: shards in keyed order, and in each its documents as they are stored.  n shards.
    shards = permutation(len(documents.shard_first) - 1, seed, "shards", number_of(name))  # [n]
    first, last = documents.shard_first[:-1][shards], documents.shard_first[1:][shards]  # [n], as in the set
    offset = np.concatenate([[0], np.cumsum(last - first)])  # [n + 1], documents before each shard of the line
    count = int(offset[-1])
    if not count:
        raise UserError(f"source {name!r} has no documents")
    tokens = np.concatenate([[0], np.cumsum(documents.shard_tokens[shards])])  # [n + 1], tokens before each shard
    cuts = np.empty(streams + 1, np.int64)  # stream s owns documents [cuts[s], cuts[s + 1]) of the line
    for stream in range(streams + 1):
        target = int(tokens[-1]) * stream // streams  # raw tokens of the line that lie before stream `stream`
        shard = min(int(np.searchsorted(tokens, target, side="right")) - 1, len(shards) - 1)
        sizes = documents.tokens_of(int(first[shard]), int(last[shard]))  # [documents of the shard]
        within = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])  # [.. + 1], tokens before each of them
        # The first document whose begin is not before the target: a document goes to the stream that it begins in.
        cuts[stream] = offset[shard] + np.searchsorted(within, target - tokens[shard], side="left")
    cuts[0], cuts[-1] = 0, count
    if count >= streams:
        # Every stream at least one document: cut s lies in [s, count - (streams - s)].
        index = np.arange(streams + 1)
        cuts = np.maximum.accumulate(np.maximum(cuts - index, 0)) + index
        cuts = np.minimum(cuts, count - streams + index)
        starts, ends = cuts[:-1], cuts[1:]
    else:
        # Fewer documents than streams: each stream has one, and some have the same.
        starts = np.arange(streams) * count // streams
        ends = starts + 1
    # Intervals of the line -> blocks: the part of each shard that an interval covers, counted as in the set.
    begins, finishes, blocks = [], [], [0]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        low = int(np.searchsorted(offset, start, side="right")) - 1  # the shard that holds the first document
        high = int(np.searchsorted(offset, end, side="left"))  # and the one behind its last
        a = np.maximum(offset[low:high], start) - offset[low:high] + first[low:high]  # [shards], begin in each
        b = np.minimum(offset[low + 1 : high + 1], end) - offset[low:high] + first[low:high]  # [shards], end
        begins.append(a[b > a])  # shards without documents give no block
        finishes.append(b[b > a])
        blocks.append(blocks[-1] + len(begins[-1]))
    return Ownership(np.concatenate(begins), np.concatenate(finishes), np.array(blocks, np.int64))


class StreamOrder:
    """The endless sequence of documents of one stream and one source."""

    def __init__(self, ownership: Ownership, stream: int, seed: int, name: str) -> None:
        self._begin, self._end = ownership.of(stream)
        self._key = (seed, stream, number_of(name))
        self.documents = int((self._end - self._begin).sum())
        self._epoch = -1
        self._block = -1
        # Of the epoch and the block that were asked for last; a stream asks in order.
        self._order = np.zeros(0, np.int64)  # [blocks], in which order the epoch takes them
        self._starts = np.zeros(0, np.int64)  # [blocks + 1], position of each one's first document in the epoch
        self._within = np.zeros(0, np.int64)  # [documents of the block], their order

    def at(self, epoch: int, position: int) -> int:
        """The document at `position` (0 <= position < documents) of stream-epoch `epoch`."""
        seed, stream, source = self._key
        if epoch != self._epoch:
            self._order = permutation(len(self._begin), seed, "blocks", source, stream, epoch)
            sizes = (self._end - self._begin)[self._order]  # [blocks], documents, in the order of this epoch
            self._starts = np.concatenate([[0], np.cumsum(sizes)])
            self._epoch, self._block = epoch, -1
        turn = int(np.searchsorted(self._starts, position, side="right")) - 1  # which block of the epoch
        block = int(self._order[turn])
        if block != self._block:
            count = int(self._end[block] - self._begin[block])
            keyed = int(self._begin[block]) + (stream << 40)  # a draw has three indices: block and stream share one
            self._within = permutation(count, seed, "documents", source, keyed, epoch)
            self._block = block
        return int(self._begin[block] + self._within[position - int(self._starts[turn])])  # its place within the block
