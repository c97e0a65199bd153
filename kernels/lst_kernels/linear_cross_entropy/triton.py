"""The softmax between the head's two matrix products: logits read once forward, read and written once backward, or
both in one kernel, where the backward pass is ahead and no other shard of the vocabulary has to be asked between."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch, warps_for

BLOCK = 4096
"""Logits that a program holds at a time, at most."""


@triton.jit
def _at(base, column, V):
    """The logit of a row at `column`, 0 where it is not in this shard."""
    here = (column >= 0) & (column < V)
    return tl.load(base + column, mask=here, other=0.0).to(tl.float32)


@triton.jit
def _normaliser(base, V, BV: tl.constexpr):
    """Log of the sum of a row's exponentials."""
    highest = tl.full([BV], float("-inf"), tl.float32)  # of each lane: one reduction over lanes a row
    total = tl.zeros([BV], tl.float32)
    for v in range(0, V, BV):
        i = v + tl.arange(0, BV)
        x = tl.load(base + i, mask=i < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, x)
        reached = tl.where(higher == float("-inf"), 0.0, higher)  # a lane that has seen nothing yet
        total = total * tl.exp(highest - reached) + tl.exp(x - reached)
        highest = higher
    largest = tl.max(highest)
    return largest + tl.log(tl.sum(total * tl.exp(highest - largest)))


@triton.jit
def _differentiate(base, i, normaliser, column, grad, V):
    """In place: (softmax - one at `column`) * grad, of values i of a row."""
    x = tl.load(base + i, mask=i < V, other=float("-inf")).to(tl.float32)
    dx = (tl.exp(x - normaliser) - tl.where(i == column, 1.0, 0.0)) * grad
    tl.store(base + i, dx.to(base.dtype.element_ty), mask=i < V)


@triton.jit
def softmax_statistics(logits_ptr, column_ptr, normaliser_ptr, target_ptr, V, stride, BV: tl.constexpr):
    """Of one row: log of the sum of exponentials, and the logit at `column` (0 where it is not in this shard)."""
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * stride
    tl.store(target_ptr + row, _at(base, tl.load(column_ptr + row), V))
    tl.store(normaliser_ptr + row, _normaliser(base, V, BV))


@triton.jit
def softmax_gradient(logits_ptr, normaliser_ptr, column_ptr, grad_ptr, V, stride, BV: tl.constexpr):
    """In place: (softmax - one at `column`) * grad, of a block of one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BV + tl.arange(0, BV)
    normaliser, grad = tl.load(normaliser_ptr + row), tl.load(grad_ptr + row)
    _differentiate(logits_ptr + row * stride, i, normaliser, tl.load(column_ptr + row), grad, V)


@triton.jit
def softmax_ahead(logits_ptr, column_ptr, grad_ptr, normaliser_ptr, target_ptr, V, stride, BV: tl.constexpr):
    """Both of one row, whose second reading finds it in the L2 cache."""
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * stride
    column, grad = tl.load(column_ptr + row), tl.load(grad_ptr + row)
    tl.store(target_ptr + row, _at(base, column, V))  # before any thread overwrites it: sums over threads lie between
    normaliser = _normaliser(base, V, BV)
    tl.store(normaliser_ptr + row, normaliser)
    for v in range(0, V, BV):
        _differentiate(base, v + tl.arange(0, BV), normaliser, column, grad, V)


def _block(vocabulary: int) -> int:
    return int(min(BLOCK, triton.next_power_of_2(max(vocabulary, 1))))


def softmax_statistics_launch(logits: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """logits [c, V], column int [c] -> log-sum-exp and the logit at `column`, float32 [c] both."""
    rows, vocabulary = logits.shape
    normaliser, target = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    block = _block(vocabulary)
    launch(
        softmax_statistics, (rows,), logits, column.contiguous(), normaliser, target, vocabulary, logits.stride(0),
        BV=block, num_warps=warps_for(block),
    )  # fmt: skip
    return normaliser, target


def softmax_gradient_launch(logits: Tensor, normaliser: Tensor, column: Tensor, grad: Tensor) -> None:
    """logits [c, V] become the loss's gradient of them; normaliser, grad float32 [c], column int [c]."""
    rows, vocabulary = logits.shape
    block = _block(vocabulary)
    launch(
        softmax_gradient, (rows, triton.cdiv(vocabulary, block)), logits, normaliser.contiguous(), column.contiguous(),
        grad.contiguous(), vocabulary, logits.stride(0), BV=block, num_warps=warps_for(block),
    )  # fmt: skip


def softmax_ahead_launch(logits: Tensor, column: Tensor, grad: Tensor, normaliser: Tensor, target: Tensor) -> None:
    """As both of the above, on whole rows: logits are overwritten, normaliser and target float32 [c] written."""
    rows, vocabulary = logits.shape
    block = _block(vocabulary)
    launch(
        softmax_ahead, (rows,), logits, column.contiguous(), grad.contiguous(), normaliser, target, vocabulary,
        logits.stride(0), BV=block, num_warps=warps_for(block),
    )  # fmt: skip
