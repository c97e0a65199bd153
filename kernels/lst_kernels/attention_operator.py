"""A pair of Triton launchers (forward, one fused backward) as a PyTorch operator with autograd and fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Attention = Callable[..., tuple[Tensor, Tensor]]


def attention_operator(
    name: str,
    forward: Attention,
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    lse_shape: Callable[[Tensor], tuple[int, ...]],
) -> Attention:
    """Register `lst_kernels::name`: (q, k, v, start, end, scale, seen_by) -> (out like q, log of the softmax's sum).

    torch.compile and activation recomputation work through it; the second output, float32, carries no gradient.

    Args:
        forward: launches the forward kernel.
        backward: (grad, q, k, v, start, end, out, lse, scale, and seen_by where it is given) -> dq, dk, dv.
        lse_shape: shape of the second output, from q.
    """

    def attend(
        q: Tensor, k: Tensor, v: Tensor, start: Tensor, end: Tensor, scale: float, seen_by: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return forward(q, k, v, start, end, scale)

    def attend_backward(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        start: Tensor,
        end: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        seen_by: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return backward(grad, q, k, v, start, end, out, lse, scale, *(() if seen_by is None else (seen_by,)))

    operator = torch.library.custom_op(f"lst_kernels::{name}", attend, mutates_args=())
    gradient = torch.library.custom_op(f"lst_kernels::{name}_backward", attend_backward, mutates_args=())

    @operator.register_fake
    def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape), q.new_empty(lse_shape(q), dtype=torch.float32)

    @gradient.register_fake
    def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, seen_by = inputs
        ctx.save_for_backward(*tensors, *output, seen_by)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # the second output's would be zeros, filled and never read

    def differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        *tensors, seen_by = ctx.saved_tensors
        return *gradient(grad, *tensors, ctx.scale, seen_by), *(None,) * 4

    operator.register_autograd(differentiate, setup_context=save)
    return operator
