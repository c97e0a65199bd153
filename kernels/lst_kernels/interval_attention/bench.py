"""interval_attention beside FlexAttention (mask built before, and counted) and PyTorch's varlen attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bench_case import Case, Setting

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Use:
    """One place in the model where interval_attention stands."""

    name: str
    heads: int
    kv_heads: int
    dim: int
    k_start: Tensor
    k_end: Tensor
    keys: int
    documents: Tensor | None = None
    """Document starts [n + 1], where queries and keys are the same tokens."""
    left: int = -1
    """How many earlier tokens a window lets a token see, -1 for all."""


def uses(setting: Setting) -> list[Use]:
    """Local windowed self-attention, global causal attention, and the decoder's cross-attention to its newest
    unit."""
    start, _, tokens = setting.patches()
    heads, dim = setting.local_heads, setting.local_dim // setting.local_heads
    units, k = setting.rows * setting.units_per_row, setting.queries
    begin, end, documents = setting.causal(tokens, setting.window)
    local = Use("local window", heads, heads, dim, begin, end, tokens, documents, setting.window - 1)
    begin, end, documents = setting.causal(units, None)
    wide = (setting.global_heads, setting.global_kv_heads, setting.global_head_dim)
    causal = Use("global causal", *wide, begin, end, units, documents)
    token = torch.arange(tokens, device=setting.device, dtype=torch.int32)
    unit = (torch.searchsorted(start, token, right=True) - 1).int()
    return [local, causal, Use("cross, newest unit", heads, heads, dim, k * unit, k * unit + k, units * k)]


def ways(use: Use, setting: Setting) -> dict[str, Attention]:
    """Every implementation that can serve this use, ours first."""
    from torch.nn.attention.flex_attention import create_block_mask

    from .. import interval_attention
    from .flex import interval_attention_flex, interval_block_mask

    begin, end, scale = use.k_start, use.k_end, use.dim**-0.5
    prebuilt = interval_block_mask(begin, end, use.keys)
    build = torch.compile(create_block_mask)

    def flex_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j >= begin[i]) & (j < end[i])

        mask = build(seen, None, None, len(q), len(k), device=setting.device)
        return interval_attention_flex(q, k, v, begin, end, scale, mask)

    def varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from ..libraries import varlen as by_torch

        assert use.documents is not None, "only offered where there are documents"
        return by_torch(q, k, v, use.documents, setting.document_tokens, use.left)

    found: dict[str, Attention] = {
        "triton": lambda q, k, v: interval_attention(q, k, v, begin, end, backend="triton"),
        "flex": lambda q, k, v: interval_attention_flex(q, k, v, begin, end, scale, prebuilt),
        "flex + our table": lambda q, k, v: interval_attention_flex(q, k, v, begin, end, scale),
        "flex + mask": flex_mask,
    }
    return found | ({"varlen_attn": varlen} if use.documents is not None else {})


def cases(setting: Setting) -> Iterator[Case]:
    """FLOPs counted: 4 D for every pair that is seen, and 2.5 times that backward."""
    from .. import interval_attention

    for use in uses(setting):
        q = setting.randn(len(use.k_start), use.heads, use.dim)
        k, v = (setting.randn(use.keys, use.kv_heads, use.dim) for _ in range(2))
        flops = 4.0 * use.dim * use.heads * float((use.k_end - use.k_start).clamp(min=0).sum())

        def reference(q: Tensor, k: Tensor, v: Tensor, use: Use = use) -> Tensor:
            return interval_attention(q, k, v, use.k_start, use.k_end, backend="reference")

        for name, run in ways(use, setting).items():
            yield Case("interval_attention", use.name, name, run, reference, [q, k, v], flops, 2.5 * flops, "flops")
