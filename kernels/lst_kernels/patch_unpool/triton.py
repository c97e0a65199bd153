"""patch_unpool in Triton: broadcast and add in one pass; the gradient of a patch gathered by one program, no
atomics."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import columns, launch


@triton.jit
def unpool_forward(
    patches_ptr, index_ptr, base_ptr, out_ptr, P, D, stride_pp, stride_pd, stride_bt, stride_bd,
    HAS_BASE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD], columns
    column = d < D
    p = tl.load(index_ptr + t).to(tl.int64)  # patch of the token; outside [0, P): none
    owned = (p >= 0) & (p < P)
    row = tl.load(patches_ptr + p * stride_pp + d.to(tl.int64) * stride_pd, mask=column & owned, other=0.0)
    value = row.to(tl.float32)
    if HAS_BASE:
        base = tl.load(base_ptr + t * stride_bt + d.to(tl.int64) * stride_bd, mask=column, other=0.0)
        value += base.to(tl.float32)
    tl.store(out_ptr + t * D + d, value.to(out_ptr.dtype.element_ty), mask=column)


@triton.jit
def unpool_backward(
    grad_ptr, order_ptr, bounds_ptr, out_ptr, D, stride_gt, stride_gd, BD: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)  # [BD], columns
    column = d < D
    first, last = tl.load(bounds_ptr + p), tl.load(bounds_ptr + p + 1)  # its tokens are order[first:last]
    total = tl.zeros([BD], tl.float32)
    for i in range(first, last, UNROLL):
        for u in tl.static_range(UNROLL):  # independent loads, all under way at once
            inside = i + u < last
            t = tl.load(order_ptr + i + u, mask=inside, other=0).to(tl.int64)
            at = grad_ptr + t * stride_gt + d.to(tl.int64) * stride_gd
            total += tl.load(at, mask=column & inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + p * D + d, total.to(out_ptr.dtype.element_ty), mask=column)


def unpool_forward_launch(patches: Tensor, index: Tensor, base: Tensor | None) -> Tensor:
    """[T, d]."""
    p, d = patches.shape
    out = torch.empty(index.numel(), d, dtype=patches.dtype, device=patches.device)
    block, warps = columns(d)
    added = out if base is None else base
    launch(
        unpool_forward, (index.numel(), triton.cdiv(d, block)), patches, index, added, out, p, d,
        *patches.stride(), *added.stride(), HAS_BASE=base is not None, BD=block, num_warps=warps,
    )  # fmt: skip
    return out


def unpool_backward_launch(grad: Tensor, index: Tensor, patches: int) -> Tensor:
    """Gradient [P, d]: the tokens sorted by patch (stable, on the device), then one program a patch sums its
    own."""
    d = grad.shape[1]
    out = torch.empty(patches, d, dtype=grad.dtype, device=grad.device)
    by_patch, order = torch.sort(index, stable=True)  # [T] each: stable, so that sums have one order
    edges = torch.arange(patches + 1, device=index.device, dtype=index.dtype)
    bounds = torch.searchsorted(by_patch, edges, out_int32=True)  # [P + 1]
    block, warps = columns(d)
    launch(
        unpool_backward, (patches, triton.cdiv(d, block)), grad, order, bounds, out, d, *grad.stride(),
        BD=block, UNROLL=4, num_warps=warps,
    )  # fmt: skip
    return out
