"""linear_cross_entropy, a chunk of rows at a time, for any shard of the vocabulary.

The softmax between the products is PyTorch's operators, on any device, or two Triton kernels: `_Softmax`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..add_product import add_product
from ..checks import accumulator


def _combine(normaliser: Tensor, target: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """From each shard's log-sum-exp [N] and its part of the target's logit [N] to those of the whole vocabulary."""
    largest = normaliser.clone()  # [N], so that no exponential overflows
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    sums = torch.stack(((normaliser - largest).exp_(), target))  # [2, N], in one reduction
    dist.all_reduce(sums, group=group)
    return sums[0].log_().add_(largest), sums[1]


def _statistics(logits: Tensor, column: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Of each row of logits [c, V]: log-sum-exp, and the logit at `column`, 0 where that is in another shard."""
    if backend == "triton":
        from .library import statistics

        return statistics(logits, column)
    inside = (column >= 0) & (column < logits.shape[1])
    logits = logits.to(accumulator(logits.dtype))
    target = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    return logits.logsumexp(-1), target * inside


def _gradient(logits: Tensor, normaliser: Tensor, column: Tensor, grad: Tensor, backend: str) -> Tensor:
    """The loss's gradient of logits [c, V], which may be overwritten; in their dtype."""
    if backend == "triton":
        from .library import gradient

        gradient(logits, normaliser, column, grad)
        return logits
    inside = (column >= 0) & (column < logits.shape[1])
    dlogits = logits.to(accumulator(logits.dtype)).sub_(normaliser[:, None]).exp_()
    dlogits.scatter_add_(1, column.clamp(0, logits.shape[1] - 1)[:, None], -inside[:, None].to(dlogits.dtype))
    return dlogits.mul_(grad[:, None]).to(logits.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore: int, chunk: int, group: Any, backend: str
    ) -> Tensor:
        first = dist.get_rank(group) * weight.shape[0] if group is not None else 0
        # Of the shard that holds a row's target; below 0 or past the end in the others.
        column = labels.long().masked_fill(labels == ignore, 0) - first
        normaliser = torch.empty(len(labels), dtype=accumulator(hidden.dtype), device=hidden.device)
        target = torch.empty_like(normaliser)
        for i in range(0, hidden.shape[0], chunk):
            rows = slice(i, i + chunk)
            normaliser[rows], target[rows] = _statistics(hidden[rows] @ weight.t(), column[rows], backend)
        if group is not None:
            normaliser, target = _combine(normaliser, target, group)
        ctx.save_for_backward(hidden, weight, labels, column, normaliser)
        ctx.ignore, ctx.chunk, ctx.softmax = ignore, chunk, backend
        return (normaliser - target).masked_fill_(labels == ignore, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, labels, column, normaliser = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if need_hidden else None
        dweight = torch.zeros_like(weight, dtype=accumulator(weight.dtype)) if need_weight else None
        grad = grad.masked_fill(labels == ctx.ignore, 0.0)
        for i in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            logits = hidden[rows] @ weight.t()
            dlogits = _gradient(logits, normaliser[rows], column[rows], grad[rows], ctx.softmax)
            if dhidden is not None:
                torch.mm(dlogits, weight, out=dhidden[rows])
            if dweight is not None:
                add_product(dweight, dlogits.t(), hidden[rows])
            del logits, dlogits  # before the next chunk's
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None, None, None, None


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore: int,
    chunk: int,
    group: Any = None,
    backend: str = "reference",
) -> Tensor:
    """Losses [N] of hidden [N, d] against weight [V, d].  See `lst_kernels.linear_cross_entropy`."""
    return _LinearCrossEntropy.apply(hidden, weight, labels, ignore, chunk, group, backend)
