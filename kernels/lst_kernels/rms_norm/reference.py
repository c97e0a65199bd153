"""rms_norm in PyTorch's own operators: any device, float64 included; what runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from ..checks import accumulator, require

Into = Callable[[], tuple[Tensor, bool]]
"""Where a weight's gradient goes, and whether it is the first there: written, not added; see `lst_kernels.rms_norm`."""


def target_of(into: Into, weight: Tensor) -> tuple[Tensor, bool]:
    """What `into` gives, checked: a kernel writes there."""
    target, first = into()
    fits = target.shape == weight.shape and target.dtype == accumulator(weight.dtype) and target.is_contiguous()
    require(
        fits, "rms_norm", "into must give a contiguous tensor of the accumulator's dtype", into=target, weight=weight
    )
    return target, first


class _Gradient(torch.autograd.Function):
    """The weight itself; its gradient goes where `into` says."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, into: Into) -> Tensor:
        ctx.into = into
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        target, first = target_of(ctx.into, grad)
        if first:
            target.copy_(grad)
        else:
            target += grad
        return torch.empty_like(grad), None


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, into: Into | None = None) -> Tensor:
    """x [..., d], weight [d] -> [..., d].  See `lst_kernels.rms_norm`."""
    if into is not None:
        weight = _Gradient.apply(weight, into)
    return rms_norm(x, weight.shape, weight, eps)


def rms_norm_residual_reference(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, into: Into | None = None
) -> tuple[Tensor, Tensor]:
    """-> ([..., d], [..., d]).  See `lst_kernels.rms_norm_residual`."""
    total = x if residual is None else residual + x
    return rms_norm_reference(total, weight, eps, into), total
