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
from megatron_lst.parallel.state import group_of
from megatron_lst.patching.row import Row
from megatron_lst.patching.serialisation import row_to_bytes, rows_from_bytes


class RowBalancer:
    """Distributes the rows of every step over the data-parallel shares; collective over one builder of each share.

    Its gloo group is its own: rows stay on the CPU, and wait for no GPU stream.
    """

    def __init__(self, share: int, builders: Sequence[int]) -> None:
        """
        Args:
            share: which of them this rank builds for.
            builders: the world rank of a builder of each share that takes part, this rank among them.
        """
        self._share, self._size = share, len(builders)
        self._group: dist.ProcessGroup | None = None
        if self._size > 1:
            # Made by its members alone, without the other ranks.
            self._group = group_of(builders, "gloo")
            members = dist.get_process_group_ranks(self._group)
            self._place = [members.index(rank) for rank in builders]  # of each share in the group

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """This share's rows of a step as built -> the rows that it trains on: as many, by increasing index.

        Over all shares they are the same rows. Nothing moves where that would not make the heaviest share lighter (an
        unpatched baseline's rows are all of one length).
        """
        if self._group is None:
            return list(rows)
        packed = [row_to_bytes(row) for row in rows]  # uint8 [bytes] each
        # Row i of the step, counted over shares in their order, is row i % each of share i // each.
        mine = torch.tensor([[len(row.tokens), len(data)] for row, data in zip(rows, packed, strict=True)])
        parts = [torch.empty_like(mine) for _ in range(self._size)]  # by place, each [rows, 2]: tokens, bytes
        dist.all_gather(parts, mine, group=self._group)
        gathered = [parts[place] for place in self._place]  # by share
        lengths, sizes = torch.cat(gathered).T.tolist()  # [rows of the step] each
        each = len(rows)
        groups = balanced_groups(lengths, self._size)
        if max(sum(lengths[i] for i in group) for group in groups) >= max(int(part[:, 0].sum()) for part in gathered):
            return list(rows)
        # all_to_all_single takes what goes to place 0 first, then what goes to place 1, and so on.
        goes_to = {i: self._place[share] for share, group in enumerate(groups) for i in group}
        leaving = sorted(range(each), key=lambda i: goes_to[self._share * each + i])
        sent, received = [0] * self._size, [0] * self._size  # bytes, by place
        for i in leaving:
            sent[goes_to[self._share * each + i]] += len(packed[i])
        for i in groups[self._share]:
            received[self._place[i // each]] += sizes[i]
        incoming = torch.empty(sum(received), dtype=torch.uint8)
        outgoing = torch.from_numpy(np.concatenate([packed[i] for i in leaving]))
        dist.all_to_all_single(incoming, outgoing, received, sent, group=self._group)
        return sorted(rows_from_bytes(incoming.numpy()), key=lambda row: row.index)
