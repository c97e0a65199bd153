"""add_product as a PyTorch operator on cuBLAS's own accumulation in float32."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("lst_kernels::add_product", mutates_args=("into",))
def added(into: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == into.dtype:
        into.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(into, left, right, out_dtype=torch.float32, out=into)
    else:
        into.addmm_(left.float(), right.float())


@added.register_fake
def _(into: Tensor, left: Tensor, right: Tensor) -> None:
    return None


@torch.library.custom_op("lst_kernels::put_product", mutates_args=("into",))
def put(into: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == into.dtype:
        torch.mm(left, right, out=into)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=torch.float32, out=into)
    else:
        torch.mm(left.float(), right.float(), out=into)


@put.register_fake
def _(into: Tensor, left: Tensor, right: Tensor) -> None:
    return None


@register_flop_formula([torch.ops.lst_kernels.add_product, torch.ops.lst_kernels.put_product])
def _flops(into: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


@functools.cache
def works_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small product comes out as it should, in place and unrounded; asked once, as an engine is built."""
    try:
        left = (torch.arange(64 * 96, device=device) % 7 - 3).view(96, 64).to(dtype)
        into = torch.full((64, 80), 1 / 3, device=device)
        right = (torch.arange(96 * 80, device=device) % 5 - 2).view(96, 80).to(dtype) / 8
        want = into.double() + left.double().t() @ right.double()
        added(into, left.t(), right)
        over = torch.full_like(into, float("nan"))
        put(over, left.t(), right)
        found = torch.cat((into.double() - want, over.double() + 1 / 3 - want))
        return bool(found.abs().max() < 1e-4)
    except (RuntimeError, TypeError, NotImplementedError):  # a PyTorch without out_dtype, a build without the product
        return False
