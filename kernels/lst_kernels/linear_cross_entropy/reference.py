"""linear_cross_entropy in plain PyTorch, a chunk of rows at a time, on any device, for any shard of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..checks import accumulator


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """[c, d] x [V, d] -> [c, V] in float32 (float64 for float64)."""
    return (hidden @ weight.t()).to(accumulator(hidden.dtype))


def _combine(normaliser: Tensor, target: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """From each shard's log-sum-exp [N] and its part of the target's logit [N] to those of the whole vocabulary."""
    largest = normaliser.clone()  # [N], so that no exponential overflows
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    sums = torch.stack(((normaliser - largest).exp_(), target))  # [2, N], in one reduction
    dist.all_reduce(sums, group=group)
    return sums[0].log_().add_(largest), sums[1]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, ignore: int, chunk: int, group: Any
    ) -> Tensor:
        shard = weight.shape[0]
        first = dist.get_rank(group) * shard if group is not None else 0  # this shard's first vocabulary row
        column = labels.long().masked_fill(labels == ignore, 0) - first
        # The shard that holds a row's target; 1 everywhere without a group.
        mine = ((column >= 0) & (column < shard)).to(accumulator(hidden.dtype))
        column = column.clamp(0, shard - 1)
        normaliser, target = torch.empty_like(mine), torch.empty_like(mine)
        for i in range(0, hidden.shape[0], chunk):
            rows = slice(i, i + chunk)
            logits = _logits(hidden[rows], weight)  # [c, V]: the only one that exists at a time
            target[rows] = logits.gather(1, column[rows, None]).squeeze(1)
            normaliser[rows] = logits.logsumexp(-1)
        target *= mine  # the other shards add 0
        if group is not None:
            normaliser, target = _combine(normaliser, target, group)
        ctx.save_for_backward(hidden, weight, labels, column, mine, normaliser)
        ctx.ignore, ctx.chunk = ignore, chunk
        return (normaliser - target).masked_fill_(labels == ignore, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, labels, column, mine, normaliser = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if need_hidden else None
        dweight = torch.zeros_like(weight, dtype=accumulator(weight.dtype)) if need_weight else None
        grad = grad.masked_fill(labels == ctx.ignore, 0.0)
        for i in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            dlogits = _logits(hidden[rows], weight).sub_(normaliser[rows, None]).exp_()  # the softmax again, [c, V]
            dlogits.scatter_add_(1, column[rows, None], -mine[rows, None])  # minus 1 at the target
            dlogits = dlogits.mul_(grad[rows, None]).to(hidden.dtype)
            if dhidden is not None:
                dhidden[rows] = dlogits @ weight
            if dweight is not None:
                dweight += dlogits.t() @ hidden[rows]
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None, None, None


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore: int, chunk: int, group: Any = None
) -> Tensor:
    """Losses [N] of hidden [N, d] against weight [V, d].  See `lst_kernels.linear_cross_entropy`."""
    return _LinearCrossEntropy.apply(hidden, weight, labels, ignore, chunk, group)
