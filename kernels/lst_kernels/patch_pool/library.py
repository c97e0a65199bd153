"""patch_pool's Triton kernels as PyTorch operators: visible to autograd, torch.compile and recomputation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .triton import pool_backward_launch, pool_forward_launch


@torch.library.custom_op("lst_kernels::patch_pool", mutates_args=())
def pool(x: Tensor, start: Tensor, end: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    return pool_forward_launch(x, start, end, mode)


@pool.register_fake
def _(x: Tensor, start: Tensor, end: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    shape = (start.shape[0], x.shape[1])
    return x.new_empty(shape), x.new_empty(shape if mode == "max" else (0,), dtype=torch.int16)


@torch.library.custom_op("lst_kernels::patch_pool_backward", mutates_args=())
def pool_backward(grad: Tensor, start: Tensor, end: Tensor, winner: Tensor, tokens: int, mode: str) -> Tensor:
    return pool_backward_launch(grad, start, end, winner, tokens, mode)


@pool_backward.register_fake
def _(grad: Tensor, start: Tensor, end: Tensor, winner: Tensor, tokens: int, mode: str) -> Tensor:
    return grad.new_empty(tokens, grad.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, start, end, mode = inputs
    ctx.save_for_backward(start, end, output[1])
    ctx.tokens, ctx.mode = x.shape[0], mode
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # the second output's would be zeros, filled and never read


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    start, end, winner = ctx.saved_tensors
    return pool_backward(grad, start, end, winner, ctx.tokens, ctx.mode), None, None, None


pool.register_autograd(_backward, setup_context=_save)


def patch_pool_triton(x: Tensor, start: Tensor, end: Tensor, mode: str) -> Tensor:
    """x [T, d], start and end int32 [P] -> [P, d].  See `lst_kernels.patch_pool`."""
    return pool(x, start, end, mode)[0]
