"""Rows exchanged between data-parallel ranks, so that each trains on about the same number of tokens (SPEC 1).

Which rows a rank *builds* follows from its streams, and so it must: they read their own shards. But a row of
interleaved speech holds more than twice the tokens of a row of text, all ranks wait for the heaviest one at every
step, and rows are small. So the rows of a step are distributed anew over the ranks before they train on them.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from megatron_lst.engines.microbatches import balanced_groups
from megatron_lst.patching.row import Row
from megatron_lst.patching.serialisation import row_to_bytes, rows_from_bytes


class RowBalancer:
    """Distributes the rows of every step over the data-parallel ranks; collective over all ranks of the job.

    Its gloo groups are its own: rows stay on the CPU, and wait for no GPU stream.
    """

    def __init__(self, data_rank: int, data_size: int) -> None:
        """Args: data_rank, data_size: which share of the global batch this rank builds (`Engine`)."""
        self._rank, self._size = data_rank, data_size
        self._group = _peers(data_rank, data_size) if data_size > 1 else None

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """This rank's rows of a step -> the rows that it trains on: as many, by increasing index.

        Over all data-parallel ranks they are the same rows. Nothing moves where that would not make the heaviest rank
        lighter (an unpatched baseline's rows are all of one length).
        """
        if self._group is None:
            return list(rows)
        packed = [row_to_bytes(row) for row in rows]
        # Row i of the step, counted over ranks in their order, is row i % each of rank i // each.
        mine = torch.tensor([[len(row.tokens), len(data)] for row, data in zip(rows, packed, strict=True)])
        gathered = [torch.empty_like(mine) for _ in range(self._size)]  # each [rows, 2]: tokens, bytes
        dist.all_gather(gathered, mine, group=self._group)
        lengths, sizes = torch.cat(gathered).T.tolist()
        each = len(rows)
        groups = balanced_groups(lengths, self._size)
        if max(sum(lengths[i] for i in group) for group in groups) >= max(int(part[:, 0].sum()) for part in gathered):
            return list(rows)
        goes_to = {i: rank for rank, group in enumerate(groups) for i in group}
        # all_to_all_single takes what goes to rank 0 first, then what goes to rank 1, and so on.
        leaving = sorted(range(each), key=lambda i: goes_to[self._rank * each + i])
        sent, received = [0] * self._size, [0] * self._size  # bytes, by rank
        for i in leaving:
            sent[goes_to[self._rank * each + i]] += len(packed[i])
        for i in groups[self._rank]:
            received[i // each] += sizes[i]
        incoming = torch.empty(sum(received), dtype=torch.uint8)
        outgoing = torch.from_numpy(np.concatenate([packed[i] for i in leaving]))
        dist.all_to_all_single(incoming, outgoing, received, sent, group=self._group)
        return sorted(rows_from_bytes(incoming.numpy()), key=lambda row: row.index)


def _peers(data_rank: int, data_size: int) -> dist.ProcessGroup:
    """The group that holds one rank of each data-parallel share: the k-th of each with the k-th of the others."""
    shares = [0] * dist.get_world_size()
    dist.all_gather_object(shares, data_rank, group=dist.new_group(backend="gloo"))
    found: dist.ProcessGroup | None = None
    for peers in zip(*([r for r, share in enumerate(shares) if share == d] for d in range(data_size)), strict=True):
        group = dist.new_group(list(peers), backend="gloo")
        if dist.get_rank() in peers:
            found = group
    assert found is not None, "every rank feeds a share of the global batch"
    return found
