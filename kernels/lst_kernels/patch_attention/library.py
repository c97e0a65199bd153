"""patch_attention's Triton kernels as PyTorch operators."""

from __future__ import annotations

from torch import Tensor

from ..attention_operator import attention_operator
from .triton import patch_attention_backward_launch, patch_attention_forward_launch

attention = attention_operator(
    "patch_attention", patch_attention_forward_launch, patch_attention_backward_launch, lambda q: q.shape[:3]
)


def patch_attention_triton(q: Tensor, k: Tensor, v: Tensor, start: Tensor, end: Tensor, scale: float) -> Tensor:
    """q [P, k, H, D], k and v [T, H, D] -> [P, k, H, D].  See `lst_kernels.patch_attention`."""
    return attention(q, k, v, start, end, scale)[0]
