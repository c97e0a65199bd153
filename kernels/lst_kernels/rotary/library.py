"""rotary's Triton kernel as a PyTorch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .triton import rotary_launch


@torch.library.custom_op("lst_kernels::rotary", mutates_args=())
def turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return rotary_launch(x, cos, sin, back)


@turn.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return turn(grad, *ctx.saved_tensors, not ctx.back), None, None, None


turn.register_autograd(_backward, setup_context=_save)


def rotary_triton(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, H, D], cos and sin [N, D/2] -> [N, H, D].  See `lst_kernels.rotary`."""
    return turn(x, cos, sin, False)
