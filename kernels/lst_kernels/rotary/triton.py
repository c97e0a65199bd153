"""rotary in Triton: every value read once and written once, forward and back with one kernel."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch, warps_for

ELEMENTS = 2048
"""Pairs of one program."""


@triton.jit
def rotary_turn(
    x_ptr, cos_ptr, sin_ptr, out_ptr, R, H, HALF, stride_n, stride_h, stride_d,
    BACK: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # token * H + head
    d = tl.arange(0, BD)  # pair (d, d + HALF) of a head
    inside = (row < R)[:, None] & (d < HALF)[None, :]
    token, head = row // H, row % H  # [ROWS]
    source = x_ptr + (token * stride_n + head * stride_h)[:, None] + (d * stride_d)[None, :]  # [ROWS, BD]
    table = (token * HALF)[:, None] + d[None, :]  # one angle for all heads of a token
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF * stride_d, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + table, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        sin = -sin  # the opposite angle is the transposed rotation, hence the gradient
    target = out_ptr + (row * (2 * HALF))[:, None] + d[None, :]  # out is contiguous, x need not be
    tl.store(target, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=inside)


def rotary_launch(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """[N, H, D], contiguous. back: by the opposite angles."""
    tokens, heads, size = x.shape
    half = size // 2
    out = torch.empty(tokens, heads, size, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(max(half, 1))
    rows = max(1, ELEMENTS // block)
    launch(
        rotary_turn, (triton.cdiv(tokens * heads, rows) if half else 0,), x, cos.contiguous(), sin.contiguous(), out,
        tokens * heads, heads, half, *x.stride(), BACK=back, ROWS=rows, BD=block, num_warps=warps_for(ELEMENTS),
    )  # fmt: skip
    return out
