"""swiglu's Triton kernels as PyTorch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .triton import swiglu_backward_launch, swiglu_forward_launch


@torch.library.custom_op("lst_kernels::swiglu", mutates_args=())
def gated(x: Tensor) -> Tensor:
    return swiglu_forward_launch(x)


@gated.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@torch.library.custom_op("lst_kernels::swiglu_backward", mutates_args=())
def gated_backward(grad: Tensor, x: Tensor) -> Tensor:
    return swiglu_backward_launch(grad, x)


@gated_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return gated_backward(grad, *ctx.saved_tensors)


gated.register_autograd(_backward, setup_context=_save)


def swiglu_triton(x: Tensor) -> Tensor:
    """x [..., 2 F] -> [..., F].  See `lst_kernels.swiglu`."""
    return gated(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], x.shape[-1] // 2)
