"""packed_attention from the references of its parts: any device, float64 included; what runs on a CPU."""

from __future__ import annotations

from torch import Tensor

from ..interval_attention import interval_attention
from ..rotary import rotary


def heads_of(qkv: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [N, G, (R + 2) D] -> queries [N, G R, D], keys and values [N, G, D]."""
    tokens, _, width = qkv.shape
    query, key, value = qkv.split([width - 2 * size, size, size], dim=2)
    return query.reshape(tokens, -1, size), key, value


def packed_attention_reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, k_start: Tensor, k_end: Tensor, size: int, scale: float
) -> Tensor:
    """-> [N, G R, D].  See `lst_kernels.packed_attention`."""
    query, key, value = heads_of(qkv, size)
    query, key = (rotary(x, cos, sin, "reference") for x in (query, key))
    return interval_attention(query, key, value, k_start, k_end, scale, "reference")
