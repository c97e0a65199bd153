"""Intervals of keys that queries see, turned round: for each key the queries that see it."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import reads_values, require


def queries_of_keys(k_start: Tensor, k_end: Tensor, keys: int) -> Tensor:
    """int32 [2, keys]: key j is seen by queries from the first whose interval ends past j, to the last that has begun
    by j, as the first of them and the one after the last. k_start, k_end: int32 [Nq], both non-decreasing."""
    key = torch.arange(keys, device=k_start.device, dtype=torch.int32)
    seen_by = torch.empty(2, keys, device=k_start.device, dtype=torch.int32)
    for bound, into in ((k_end, seen_by[0]), (k_start, seen_by[1])):
        torch.searchsorted(bound, key, right=True, out_int32=True, out=into)
    return seen_by


def check_seen_by(op: str, keys: int, k_start: Tensor, k_end: Tensor, seen_by: Tensor | None) -> None:
    """int32 [2, keys], contiguous, on the intervals' device; where values are read, equal to `queries_of_keys`."""
    if seen_by is None:
        return
    given = {"k_start": k_start, "seen_by": seen_by}
    fits = tuple(seen_by.shape) == (2, keys) and seen_by.dtype == torch.int32 and seen_by.is_contiguous()
    require(fits, op, f"seen_by must be int32 [2, {keys}], contiguous", **given)
    require(seen_by.device == k_start.device, op, f"seen_by must be on {k_start.device}", **given)
    if reads_values(seen_by):
        right = torch.equal(seen_by, queries_of_keys(k_start, k_end, keys))
        require(right, op, "seen_by must hold the queries that see each key (`queries_of_keys`)", **given)
