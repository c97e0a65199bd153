"""packed_attention beside the same in its parts: what one gradient tensor is worth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    """The global transformer's attention. FLOPs counted: two products a visible pair forward, four backward."""
    from .. import interval_attention, packed_attention, rotary
    from .reference import heads_of

    units, size, groups = setting.rows * setting.units_per_row, setting.global_head_dim, setting.global_kv_heads
    start, end, _ = setting.causal(units, None)
    qkv = setting.randn(units, groups, (setting.global_heads // groups + 2) * size)
    angle = torch.rand(units, size // 2, device=qkv.device) * 6.28
    cos, sin = angle.cos(), angle.sin()

    def reference(qkv: Tensor) -> Tensor:
        return packed_attention(qkv, cos, sin, start, end, size, backend="reference")

    def packed(qkv: Tensor) -> Tensor:
        return packed_attention(qkv, cos, sin, start, end, size, backend="triton")

    def parts(qkv: Tensor) -> Tensor:
        query, key, value = heads_of(qkv, size)
        return interval_attention(rotary(query, cos, sin), rotary(key, cos, sin), value, start, end)

    work = 4.0 * float((end - start).sum()) * setting.global_heads * size
    for name, way in (("triton", packed), ("parts", parts)):
        yield Case("packed_attention", f"D={size}", name, way, reference, [qkv], work, 2 * work, "flops")
