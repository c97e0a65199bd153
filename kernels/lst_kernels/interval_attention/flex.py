"""interval_attention through PyTorch's FlexAttention: a peer for benchmarks and tests; nothing else runs it.

Its block mask is built from the intervals' ends directly, block by block: no [Nq, Nk] mask and no host sync.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128


def interval_block_mask(k_start: Tensor, k_end: Tensor, keys: int) -> BlockMask:
    """FlexAttention's table of blocks for intervals int32 [Nq] over `keys` keys.

    The keys that a block of queries sees at all are one range of key blocks, and those that it sees wholly
    another one inside it, because both ends never go back.
    """
    queries = k_start.numel()
    first = torch.arange(0, queries, BLOCK, device=k_start.device)
    last = (first + BLOCK - 1).clamp(max=queries - 1)
    low = k_start[first] // BLOCK
    high = torch.maximum((k_end[last] + BLOCK - 1) // BLOCK, low)
    full_low = torch.maximum((k_start[last] + BLOCK - 1) // BLOCK, low)
    full_high = torch.minimum(k_end[first] // BLOCK, high)
    none = full_high <= full_low
    full_low, full_high = torch.where(none, high, full_low), torch.where(none, high, full_high)
    blocks = -(-keys // BLOCK)
    column = torch.arange(blocks, device=k_start.device, dtype=torch.int32)[None]
    before = (full_low - low)[:, None]
    partial = torch.where(column < before, low[:, None] + column, full_high[:, None] + column - before)
    full = full_low[:, None] + column

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= k_start[q]) & (k < k_end[q])

    def table(t: Tensor) -> Tensor:
        return t.clamp(max=blocks - 1).int()[None, None]

    return BlockMask.from_kv_blocks(
        (before[:, 0] + high - full_high).int()[None, None],
        table(partial),
        (full_high - full_low).int()[None, None],
        table(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(queries, keys),
    )


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    """FlexAttention compiled once; uncompiled it would hold every score."""
    return torch.compile(flex_attention, dynamic=False)


def _uncompiled(*args: Any, **options: Any) -> Any:
    return flex_attention(*args, **options)


def interval_attention_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    scale: float,
    mask: BlockMask | None = None,
) -> Tensor:
    """q [Nq, H, D], k and v [Nk, Hk, D] -> [Nq, H, D].  `mask` saves building the table when a layer above
    has it."""
    mask = interval_block_mask(k_start, k_end, k.shape[0]) if mask is None else mask
    run = compiled_flex() if q.is_cuda else _uncompiled
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    out = run(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)
