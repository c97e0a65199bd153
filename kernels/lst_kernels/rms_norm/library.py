"""rms_norm's Triton kernels as PyTorch operators, and their autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .reference import Into, target_of
from .triton import norm_backward_launch, norm_forward_launch


@torch.library.custom_op("lst_kernels::rms_norm", mutates_args=())
def normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, _, scale = norm_forward_launch(x, None, weight, eps)
    return out, scale


@normed.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("lst_kernels::rms_norm_residual", mutates_args=())
def added_and_normed(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return norm_forward_launch(x, residual, weight, eps)


@added_and_normed.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("lst_kernels::rms_norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, beside: Tensor | None, total: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    return norm_backward_launch(grad, beside, total, weight, scale)


@norm_backward.register_fake
def _(grad: Tensor, beside: Tensor | None, total: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


@torch.library.custom_op("lst_kernels::rms_norm_backward_into", mutates_args=("into",))
def norm_backward_into(
    grad: Tensor, beside: Tensor | None, total: Tensor, weight: Tensor, scale: Tensor, into: Tensor, first: bool
) -> Tensor:
    return norm_backward_launch(grad, beside, total, weight, scale, into, first)[0]


@norm_backward_into.register_fake
def _(
    grad: Tensor, beside: Tensor | None, total: Tensor, weight: Tensor, scale: Tensor, into: Tensor, first: bool
) -> Tensor:
    return total.new_empty(total.shape)


class _Norm(torch.autograd.Function):
    """A function and no registered gradient: an operator may not return its own input, and `total` may be x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, into: Into | None
    ) -> tuple[Tensor, Tensor]:
        flat = x.reshape(-1, x.shape[-1])
        if residual is None:
            (out, scale), total = normed(flat, weight, eps), flat
        else:
            out, total, scale = added_and_normed(flat, residual.reshape(flat.shape), weight, eps)
        ctx.save_for_backward(total, weight, scale)
        ctx.adds, ctx.into = residual is not None, into
        ctx.set_materialize_grads(False)
        return out.view(x.shape), x if residual is None else total.view(x.shape)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor | None, beside: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        total, weight, scale = ctx.saved_tensors
        if grad is None:
            return beside, None, beside if ctx.adds else None, None, None
        flat = None if beside is None else beside.reshape(total.shape)
        given = (grad.reshape(total.shape), flat, total, weight, scale)
        if ctx.into is not None and ctx.needs_input_grad[1]:
            dx, dweight = norm_backward_into(*given, *target_of(ctx.into, weight)), torch.empty_like(weight)
        else:
            dx, dweight = norm_backward(*given)
        dx = dx.view(grad.shape)
        return dx, dweight, dx if ctx.adds else None, None, None


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, into: Into | None = None) -> Tensor:
    """x [..., d], weight [d] -> [..., d].  See `lst_kernels.rms_norm`."""
    return _Norm.apply(x, weight, None, eps, into)[0]


def rms_norm_residual_triton(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, into: Into | None = None
) -> tuple[Tensor, Tensor]:
    """-> ([..., d], [..., d]).  See `lst_kernels.rms_norm_residual`."""
    return _Norm.apply(x, weight, residual, eps, into)
