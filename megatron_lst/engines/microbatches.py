"""Rows of a step assigned to ranks and to micro-batches so that their numbers of tokens are balanced (SPEC 1)."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.patching.host_batch import HostBatch, host_batch
from megatron_lst.patching.row import Row


@dataclass(frozen=True)
class PackedStep:
    """A rank's rows of a step in micro-batches, as the model takes them, still on the host."""

    batches: list[HostBatch]

    @property
    def targets(self) -> int:
        """Labels that count."""
        return sum(batch.targets for batch in self.batches)


def balanced_groups(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Assign rows to groups of equal size, longest first, each to the lightest group that has room.

    A function of the lengths alone, hence the same wherever they are known; O(n log n), so that thousands of rows cost
    milliseconds.

    Args:
        lengths: tokens of each row; their number is a multiple of `groups`.

    Returns:
        For each group the positions of its rows in `lengths`, increasing.
    """
    assert groups > 0 and len(lengths) % groups == 0, f"{len(lengths)} rows do not make {groups} equal groups"
    room = len(lengths) // groups
    members: list[list[int]] = [[] for _ in range(groups)]
    lightest = [(0, group) for group in range(groups)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, group = heapq.heappop(lightest)
        members[group].append(i)
        if len(members[group]) < room:
            heapq.heappush(lightest, (load + lengths[i], group))
    return [sorted(group) for group in members]


def balanced_micro_batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Assign rows to len(rows) / size micro-batches of exactly `size` rows.

    A function of the rows alone, hence the same on every rank that has them. Sums over the batch do not depend on it
    but for the order of additions.

    Raises:
        UserError: the number of rows is not a multiple of `size`.
    """
    if not rows or len(rows) % size:
        raise UserError(f"{len(rows)} rows do not make micro-batches of training.micro_batch={size}")
    groups = balanced_groups([len(row.tokens) for row in rows], len(rows) // size)
    return [[rows[i] for i in group] for group in groups]


def pack_step(rows: Sequence[Row], config: Config, layout: ParallelLayout) -> PackedStep:
    """What a training step does with its rows before they touch a device: any thread may do it ahead of the step.

    Raises:
        UserError: no whole micro-batches, or a baseline's row with units of several tokens.
    """
    micro_batches = balanced_micro_batches(rows, config.training.micro_batch)
    return PackedStep([pack_micro_batch(part, config, layout) for part in micro_batches])


def pack_micro_batch(rows: Sequence[Row], config: Config, layout: ParallelLayout) -> HostBatch:
    """Rows of one micro-batch, N a multiple that the layout can part.

    Raises:
        UserError: a baseline's row with units of several tokens.
    """
    for row in rows if config.model.kind == "baseline" else ():
        if row.units != len(row.tokens):
            raise UserError(
                f"row {row.index}: a baseline takes units of one token (patching.strategy none or bpe), "
                f"found {len(row.tokens)} tokens in {row.units} units"
            )
    return host_batch(rows, config, layout.tensor)
