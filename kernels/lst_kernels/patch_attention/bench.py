"""patch_attention beside compiled FlexAttention, its mask build counted: a new micro-batch has new
patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    """Bytes counted: q, k, v and the output once; twice as much for the gradients."""
    from torch.nn.attention.flex_attention import create_block_mask

    from .. import patch_attention
    from ..interval_attention.flex import compiled_flex

    start, end, tokens = setting.patches()
    p, k, h = len(start), setting.queries, setting.local_heads
    dim = setting.local_dim // h
    inputs = [setting.randn(p, k, h, dim), setting.randn(tokens, h, dim), setting.randn(tokens, h, dim)]
    build = torch.compile(create_block_mask)

    def ours(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, key, value: patch_attention(q, key, value, start, end, backend=backend)

    def flex(q: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j >= start[i // k]) & (j < end[i // k])

        mask = build(seen, None, None, p * k, tokens, device=setting.device)
        rows = q.reshape(p * k, h, dim).transpose(0, 1)[None]
        key, value = key.transpose(0, 1)[None], value.transpose(0, 1)[None]
        return compiled_flex()(rows, key, value, block_mask=mask)[0].transpose(0, 1).reshape(q.shape)

    moved = (2 * p * k + 2 * tokens) * h * dim * inputs[0].element_size()
    for name, run in (("triton", ours("triton")), ("flex + mask", flex)):
        yield Case("patch_attention", f"k={k}", name, run, ours("reference"), inputs, moved, 2 * moved, "bytes")
