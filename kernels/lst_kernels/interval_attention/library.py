"""interval_attention's Triton kernels as PyTorch operators."""

from __future__ import annotations

from torch import Tensor

from ..attention_operator import attention_operator
from .triton import interval_backward_launch, interval_forward_launch

attention = attention_operator(
    "interval_attention", interval_forward_launch, interval_backward_launch, lambda q: (q.shape[1], q.shape[0])
)


def interval_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, scale: float, seen_by: Tensor | None
) -> Tensor:
    """q [Nq, H, D], k and v [Nk, Hk, D] -> [Nq, H, D].  See `lst_kernels.interval_attention`."""
    return attention(q, k, v, k_start, k_end, scale, seen_by)[0]
