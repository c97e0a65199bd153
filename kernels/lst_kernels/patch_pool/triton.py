"""patch_pool in Triton: one program a patch and block of columns, forward and backward, no atomics.

The backward program of a patch writes every one of its tokens, and the loose tokens up to the next patch,
exactly once: the gradient needs neither clearing nor adding up, and is the same bits from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import columns, launch
from ..ragged import next_start, patch_span

MODES = {"sum": 0, "mean": 1, "max": 2}
MAX_PATCH = 2**15 - 1
"""Longest patch in mode max: the winner's offset is kept in int16."""


@triton.jit
def pool_forward(
    x_ptr, start_ptr, end_ptr, out_ptr, winner_ptr, T, D, stride_xt, stride_xd,
    MODE: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD], columns
    column = d < D
    start, n = patch_span(start_ptr, end_ptr, p, T)
    row0 = start.to(tl.int64)
    x_ptr += d.to(tl.int64) * stride_xd  # [BD]
    pooled = tl.zeros([BD], tl.float32)
    winner = tl.full([BD], -1, tl.int32)  # offset of the highest token within the patch
    for t in range(0, n, UNROLL):
        for i in tl.static_range(UNROLL):  # independent loads, all under way at once
            inside = column & (t + i < n)
            x = tl.load(x_ptr + (row0 + t + i) * stride_xt, mask=inside, other=0.0).to(tl.float32)
            if MODE == 2:
                # strictly greater: the first of equals stays; a NaN wins, as in torch
                wins = ((x > pooled) | (winner < 0) | ((x != x) & (pooled == pooled))) & (t + i < n)
                pooled = tl.where(wins, x, pooled)
                winner = tl.where(wins, t + i, winner)
            else:
                pooled += x
    if MODE == 1:
        pooled = pooled / tl.maximum(n, 1).to(tl.float32)
    row = p.to(tl.int64) * D + d  # out is contiguous
    if MODE == 2:
        tl.store(winner_ptr + row, winner.to(tl.int16), mask=column)
    tl.store(out_ptr + row, pooled.to(out_ptr.dtype.element_ty), mask=column)


@triton.jit
def pool_backward(
    grad_ptr, start_ptr, end_ptr, winner_ptr, dx_ptr, P, T, D, stride_gp, stride_gd,
    MODE: tl.constexpr, BD: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD], columns
    column = d < D
    start, n = patch_span(start_ptr, end_ptr, p, T)
    if n > 0:
        after = next_start(start_ptr, end_ptr, p, P, T)  # first token of the next patch that has one
        grad_at = grad_ptr + p.to(tl.int64) * stride_gp + d.to(tl.int64) * stride_gd
        grad = tl.load(grad_at, mask=column, other=0.0).to(tl.float32)
        winner = tl.zeros([BD], tl.int32)
        if MODE == 1:
            grad = grad / n.to(tl.float32)
        if MODE == 2:
            winner = tl.load(winner_ptr + p.to(tl.int64) * D + d, mask=column, other=-1).to(tl.int32)
        row0 = start.to(tl.int64)
        for t in range(0, after - start, UNROLL):
            for i in tl.static_range(UNROLL):
                if MODE == 2:
                    value = tl.where(winner == t + i, grad, 0.0)
                else:
                    value = tl.where(t + i < n, grad, 0.0)
                inside = column & (start + t + i < after)  # the loose tokens behind the patch get zeros
                tl.store(dx_ptr + (row0 + t + i) * D + d, value.to(dx_ptr.dtype.element_ty), mask=inside)
    if p == 0:  # the loose tokens before the first patch that is not empty
        first = next_start(start_ptr, end_ptr, tl.program_id(0) - 1, P, T)
        zero = tl.zeros([BD], dx_ptr.dtype.element_ty)
        for t in range(first):
            tl.store(dx_ptr + (p.to(tl.int64) + t) * D + d, zero, mask=column)  # p is 0


def pool_forward_launch(x: Tensor, start: Tensor, end: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """(pooled [P, d], winner int16 [P, d]; for mean and sum an empty tensor)."""
    tokens, d = x.shape
    patches = start.numel()
    out = torch.empty(patches, d, dtype=x.dtype, device=x.device)
    winner = torch.empty((patches, d) if mode == "max" else (0,), dtype=torch.int16, device=x.device)
    block, warps = columns(d)
    launch(
        pool_forward, (patches, triton.cdiv(d, block)), x, start, end, out, winner, tokens, d, *x.stride(),
        MODE=MODES[mode], BD=block, UNROLL=4, num_warps=warps,
    )  # fmt: skip
    return out, winner


def pool_backward_launch(grad: Tensor, start: Tensor, end: Tensor, winner: Tensor, tokens: int, mode: str) -> Tensor:
    """Gradient [T, d] of the tokens."""
    patches, d = grad.shape
    make = torch.empty if patches else torch.zeros  # without a patch no program writes the tokens
    dx = make(tokens, d, dtype=grad.dtype, device=grad.device)
    block, warps = columns(d)
    launch(
        pool_backward, (patches, triton.cdiv(d, block)), grad, start, end, winner, dx, patches, tokens, d,
        *grad.stride(), MODE=MODES[mode], BD=block, UNROLL=4, num_warps=warps,
    )  # fmt: skip
    return dx
