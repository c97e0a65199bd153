"""linear_cross_entropy, a chunk of rows at a time, for any shard of the vocabulary.

The softmax between the products is PyTorch's operators, on any device, or Triton kernels (`library`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def _statistics(logits: Tensor, column: Tensor, group: Any, backend: str) -> tuple[Tensor, Tensor]:
    """Of each row of logits [c, V / ranks]: log-sum-exp and the logit at `column`, over the whole vocabulary."""
    if backend == "triton":
        from .library import statistics

        found: tuple[Tensor, Tensor] = statistics(logits, column)
    else:
        inside = (column >= 0) & (column < logits.shape[1])
        exact = logits.to(accumulator(logits.dtype))
        target = exact.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        found = exact.logsumexp(-1), target * inside  # 0 where it is in another shard
    return found if group is None else _combine(*found, group)


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


def _ahead(
    logits: Tensor, column: Tensor, grad: Tensor, normaliser: Tensor, target: Tensor, group: Any, backend: str
) -> Tensor:
    """`_statistics` into normaliser and target, and then `_gradient`: one kernel where nothing lies between them."""
    if backend == "triton" and group is None:
        from .library import ahead

        ahead(logits, column, grad, normaliser, target)
        return logits
    for into, found in zip((normaliser, target), _statistics(logits, column, group, backend), strict=True):
        into.copy_(found)
    return _gradient(logits, normaliser, column, grad, backend)


class _Gradients:
    """What a chunk after the other adds to the gradients of hidden [N, d] and weight [V, d], where they are wanted."""

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: Sequence[bool]) -> None:
        self._inputs = hidden, weight
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=accumulator(weight.dtype)) if wanted[1] else None

    def add(self, rows: slice, dlogits: Tensor) -> None:
        """Of these rows."""
        hidden, weight = self._inputs
        if self.hidden is not None:
            torch.mm(dlogits, weight, out=self.hidden[rows])
        if self.weight is not None:
            add_product(self.weight, dlogits.t(), hidden[rows])


def _chunks(count: int, chunk: int) -> Iterator[slice]:
    return (slice(i, min(i + chunk, count)) for i in range(0, count, chunk))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        ignore: int,
        chunk: int,
        group: Any,
        backend: str,
        ahead: bool,
    ) -> Tensor:
        first = dist.get_rank(group) * weight.shape[0] if group is not None else 0
        ignored = labels == ignore
        # Of the shard that holds a row's target; below 0 or past the end in the others.
        column = labels.long().masked_fill(ignored, 0) - first
        normaliser = torch.empty(len(labels), dtype=accumulator(hidden.dtype), device=hidden.device)
        target = torch.empty_like(normaliser)
        wanted = ctx.needs_input_grad[:2]
        gradients = _Gradients(hidden, weight, wanted) if ahead and any(wanted) else None
        counted = torch.ones_like(normaliser).masked_fill_(ignored, 0.0)
        for rows in _chunks(len(hidden), chunk):
            logits = hidden[rows] @ weight.t()
            if gradients is None:
                normaliser[rows], target[rows] = _statistics(logits, column[rows], group, backend)
            else:
                part = (column[rows], counted[rows], normaliser[rows], target[rows])
                gradients.add(rows, _ahead(logits, *part, group, backend))
            del logits  # before the next chunk's
        early = (None, None) if gradients is None else (gradients.hidden, gradients.weight)
        ctx.save_for_backward(hidden, weight, ignored, column, normaliser, *early)
        ctx.chunk, ctx.backend, ctx.ahead = chunk, backend, gradients is not None
        return (normaliser - target).mul_(counted)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, ignored, column, normaliser, dhidden, dweight = ctx.saved_tensors
        if ctx.ahead and len(grad) and grad.stride() == (0,):  # the gradient of a sum: one number for all rows
            factor = grad[0]
            dhidden = None if dhidden is None else dhidden * factor
            if dweight is not None:  # rounded in the same pass
                dweight = torch.mul(dweight, factor, out=torch.empty_like(weight))
            return dhidden, dweight, *(None,) * 6
        found = _Gradients(hidden, weight, ctx.needs_input_grad[:2])
        grad = grad.masked_fill(ignored, 0.0)
        for rows in _chunks(len(hidden), ctx.chunk):
            logits = hidden[rows] @ weight.t()
            found.add(rows, _gradient(logits, normaliser[rows], column[rows], grad[rows], ctx.backend))
            del logits  # before the next chunk's
        return found.hidden, None if found.weight is None else found.weight.to(weight.dtype), *(None,) * 6


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore: int,
    chunk: int,
    group: Any = None,
    backend: str = "reference",
    ahead: bool = False,
) -> Tensor:
    """Losses [N] of hidden [N, d] against weight [V, d].  See `lst_kernels.linear_cross_entropy`."""
    return _LinearCrossEntropy.apply(hidden, weight, labels, ignore, chunk, group, backend, ahead)
