"""rms_norm in Triton: one program a row forward, some rows a program backward; no atomics.

The weight's gradient is summed over a program's own rows and written as one row of a small matrix, whose columns a
second kernel adds up: the same bits from run to run.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch, warps_for

PROGRAMS = 512
"""Rows of the weight's partial gradients, at most."""


@triton.jit
def norm_forward(
    x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, scale_ptr, D, eps, stride_x, stride_r,
    ADDS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    inside = d < D
    x = tl.load(x_ptr + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(residual_ptr + row * stride_r + d, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(total_ptr.dtype.element_ty)  # what is kept is what is normed
        tl.store(total_ptr + row * D + d, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x) / D + eps)
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * D + d, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + row, scale)


@triton.jit(do_not_specialize=["COUNT"])  # it follows from the number of rows: no kernel is built anew for another
def norm_backward(
    grad_ptr, beside_ptr, x_ptr, weight_ptr, scale_ptr, dx_ptr, partial_ptr, R, D, stride_g, stride_b, stride_x,
    COUNT, BESIDE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * COUNT
    d = tl.arange(0, BD)
    inside = d < D
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([BD], tl.float32)
    rows = tl.minimum(COUNT, R - first).to(tl.int32)
    for step in tl.range(0, rows, disable_licm=True, loop_unroll_factor=1):  # hoisted conversions spill on sm_80
        row = first + step
        grad = tl.load(grad_ptr + row * stride_g + d, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + row)
        x = tl.load(x_ptr + row * stride_x + d, mask=inside, other=0.0).to(tl.float32) * scale
        dweight += grad * x
        grad *= weight
        dx = (grad - x * (tl.sum(grad * x) / D)) * scale
        if BESIDE:
            dx += tl.load(beside_ptr + row * stride_b + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * D + d, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * D + d, dweight, mask=inside)


@triton.jit(do_not_specialize=["P"])  # as COUNT above
def norm_columns(partial_ptr, out_ptr, P, D, ADDS: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr):
    """Sums of the columns of [P, D], written or added."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    total = tl.zeros([ROWS, BD], tl.float32)
    for p in range(0, P, ROWS):
        row = p + tl.arange(0, ROWS)
        inside = (row < P)[:, None] & (d < D)[None, :]
        total += tl.load(partial_ptr + row[:, None] * D + d[None, :], mask=inside, other=0.0)
    summed = tl.sum(total, 0)
    if ADDS:
        summed += tl.load(out_ptr + d, mask=d < D, other=0.0)
    tl.store(out_ptr + d, summed.to(out_ptr.dtype.element_ty), mask=d < D)


def _rows(x: Tensor) -> Tensor:
    """The kernels read rows at any stride, a row's own values side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def norm_forward_launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x, residual [R, d] -> normed [R, d], their sum [R, d] (without a residual x itself), 1 / rms float32 [R]."""
    x = _rows(x)
    rows, d = x.shape
    out = torch.empty(rows, d, dtype=x.dtype, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    total = x if residual is None else torch.empty_like(out)
    added = x if residual is None else _rows(residual)
    block = triton.next_power_of_2(max(d, 1))
    launch(
        norm_forward, (rows if d else 0,), x, added, weight.contiguous(), out, total, scale, d, eps,
        x.stride(0), added.stride(0), ADDS=residual is not None, BD=block,
        num_warps=16 if block >= 8192 else warps_for(block),  # Triton 3.6 spills on sm_100 with 8
    )  # fmt: skip
    return out, total, scale


def norm_backward_launch(
    grad: Tensor,
    beside: Tensor | None,
    total: Tensor,
    weight: Tensor,
    scale: Tensor,
    into: Tensor | None = None,
    first: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients of what was normed [R, d], with `beside` added where it is given, and of the weight [d].

    into: float32 [d], contiguous: it gets the weight's gradient and is what is returned; unless `first`, by adding.
    """
    grad, total = _rows(grad), _rows(total)
    other = total if beside is None else _rows(beside)
    rows, d = total.shape
    dx = torch.empty(rows, d, dtype=total.dtype, device=total.device)
    dweight = torch.empty(d, dtype=weight.dtype, device=weight.device) if into is None else into
    count = max(1, triton.cdiv(rows, PROGRAMS))
    programs = triton.cdiv(rows, count)
    partial = torch.empty(programs, d, dtype=torch.float32, device=total.device)
    block = triton.next_power_of_2(max(d, 1))
    launch(
        norm_backward, (programs if d else 0,), grad, other, total, weight.contiguous(), scale, dx, partial, rows, d,
        grad.stride(0), other.stride(0), total.stride(0), count,
        BESIDE=beside is not None, BD=block, num_warps=warps_for(block),
    )  # fmt: skip
    width = 64
    launch(
        norm_columns, (triton.cdiv(d, width),), partial, dweight, programs, d,
        ADDS=not first, ROWS=32, BD=width, num_warps=4,
    )  # fmt: skip
    return dx, dweight
