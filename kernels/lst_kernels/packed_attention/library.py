"""packed_attention's Triton kernels as PyTorch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .triton import packed_backward_launch, packed_forward_launch


@torch.library.custom_op("lst_kernels::packed_attention", mutates_args=())
def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, end: Tensor, size: int, scale: float,
    seen_by: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return packed_forward_launch(qkv, cos, sin, start, end, size, scale)


@attend.register_fake
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, end: Tensor, size: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, groups, width = qkv.shape
    heads = groups * (width // size - 2)
    out = qkv.new_empty(tokens, heads, size)
    return out, qkv.new_empty(tokens * groups * (width - size)), qkv.new_empty(heads, tokens, dtype=torch.float32)


@torch.library.custom_op("lst_kernels::packed_attention_backward", mutates_args=())
def attend_backward(
    grad: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    end: Tensor,
    out: Tensor,
    turned: Tensor,
    lse: Tensor,
    size: int,
    scale: float,
    seen_by: Tensor | None = None,
) -> Tensor:
    return packed_backward_launch(grad, qkv, cos, sin, start, end, out, turned, lse, size, scale, seen_by)


@attend_backward.register_fake
def _(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.size, ctx.scale, seen_by = inputs
    ctx.save_for_backward(*tensors, *output, seen_by)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    *tensors, seen_by = ctx.saved_tensors
    return attend_backward(grad, *tensors, ctx.size, ctx.scale, seen_by), *(None,) * 7


attend.register_autograd(_backward, setup_context=_save)


def packed_attention_triton(
    qkv: Tensor, cos: Tensor, sin: Tensor, k_start: Tensor, k_end: Tensor, size: int, scale: float,
    seen_by: Tensor | None,
) -> Tensor:  # fmt: skip
    """-> [N, G R, D].  See `lst_kernels.packed_attention`."""
    return attend(qkv, cos, sin, k_start, k_end, size, scale, seen_by)[0]
