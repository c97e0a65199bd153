"""swiglu in Triton: every value read once and written once, forward and backward."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch, warps_for

ELEMENTS = 2048
"""Values of the output that one program makes."""


@triton.jit
def _tile(F, R, ROWS: tl.constexpr, BF: tl.constexpr):
    """Rows, columns and what is inside, of this program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    return row[:, None], f[None, :], (row < R)[:, None] & (f < F)[None, :]


@triton.jit
def swiglu_forward(x_ptr, out_ptr, R, F, stride_x, ROWS: tl.constexpr, BF: tl.constexpr):
    row, f, inside = _tile(F, R, ROWS, BF)
    at = x_ptr + row * stride_x + f
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + F, mask=inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * F + f, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(
    grad_ptr, x_ptr, dx_ptr, R, F, stride_g, stride_x, ROWS: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    row, f, inside = _tile(F, R, ROWS, BF)
    at = x_ptr + row * stride_x + f
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + F, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * stride_g + f, mask=inside, other=0.0).to(tl.float32)
    open_ = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * open_
    dgate = grad * up * (open_ + silu * (1.0 - open_))
    target = dx_ptr + row * (2 * F) + f
    tl.store(target, dgate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(target + F, (grad * silu).to(dx_ptr.dtype.element_ty), mask=inside)


def _grid(rows: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Blocks of columns that fill the width exactly where it has a large power of two in it."""
    block = min(1024, max(128, width & -width))
    count = max(1, ELEMENTS // block)
    grid = (triton.cdiv(rows, count), triton.cdiv(width, block))
    return grid, {"ROWS": count, "BF": block, "num_warps": warps_for(ELEMENTS)}


def _rows(x: Tensor) -> Tensor:
    """The kernels read rows at any stride, a row's own values side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def swiglu_forward_launch(x: Tensor) -> Tensor:
    """x [R, 2 F] -> [R, F]."""
    x = _rows(x)
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    grid, blocks = _grid(rows, width)
    launch(swiglu_forward, grid, x, out, rows, width, x.stride(0), **blocks)
    return out


def swiglu_backward_launch(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient [R, 2 F] of x."""
    x, grad = _rows(x), _rows(grad)
    rows, width = x.shape[0], x.shape[1] // 2
    dx = torch.empty(rows, 2 * width, dtype=x.dtype, device=x.device)
    grid, blocks = _grid(rows, width)
    launch(swiglu_backward, grid, grad, x, dx, rows, width, grad.stride(0), x.stride(0), **blocks)
    return dx
