"""Rows of a step assigned to ranks and to micro-batches so that their numbers of tokens are balanced (SPEC 1)."""

import heapq
from collections.abc import Sequence

from megatron_lst.errors import UserError
from megatron_lst.patching.row import Row


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
