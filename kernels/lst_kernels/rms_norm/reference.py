"""rms_norm in PyTorch's own operators: any device, float64 included; what runs on a CPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import rms_norm


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., d], weight [d] -> [..., d].  See `lst_kernels.rms_norm`."""
    return rms_norm(x, weight.shape, weight, eps)


def rms_norm_residual_reference(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """-> ([..., d], [..., d]).  See `lst_kernels.rms_norm_residual`."""
    total = x if residual is None else residual + x
    return rms_norm_reference(total, weight, eps), total
