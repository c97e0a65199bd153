"""interval_attention whose keys and values are one tensor, as a PyTorch operator: so is their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .triton import interval_backward_launch, interval_forward_launch


@torch.library.custom_op("lst_kernels::interval_attention_joint", mutates_args=())
def attend(
    q: Tensor, kv: Tensor, start: Tensor, end: Tensor, scale: float, seen_by: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return interval_forward_launch(q, kv[:, 0], kv[:, 1], start, end, scale)


@attend.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("lst_kernels::interval_attention_joint_backward", mutates_args=())
def attend_backward(
    grad: Tensor, q: Tensor, kv: Tensor, start: Tensor, end: Tensor, out: Tensor, lse: Tensor, scale: float,
    seen_by: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dq, dkv = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty_like(kv)
    into = dq.unflatten(1, (kv.shape[2], -1)), dkv[:, 0], dkv[:, 1]
    interval_backward_launch(grad, q, kv[:, 0], kv[:, 1], start, end, out, lse, scale, seen_by, into=into)
    return dq, dkv


@attend_backward.register_fake
def _(grad: Tensor, q: Tensor, kv: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), kv.new_empty(kv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, seen_by = inputs
    ctx.save_for_backward(*tensors, *output, seen_by)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    *tensors, seen_by = ctx.saved_tensors
    return *attend_backward(grad, *tensors, ctx.scale, seen_by), *(None,) * 4


attend.register_autograd(_backward, setup_context=_save)


def interval_attention_joint_triton(
    q: Tensor, kv: Tensor, k_start: Tensor, k_end: Tensor, scale: float, seen_by: Tensor | None
) -> Tensor:
    """q [Nq, H, D], kv [Nk, 2, Hk, D] contiguous -> [Nq, H, D].  See `lst_kernels.interval_attention_joint`."""
    return attend(q, kv, k_start, k_end, scale, seen_by)[0]
