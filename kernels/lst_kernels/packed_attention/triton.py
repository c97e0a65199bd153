"""packed_attention in Triton: interval_attention's kernels, which turn queries and gradients themselves, and a kernel
that turns keys (and all of it where a head is no power of two)."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..interval_attention.tiles import turns_in_place
from ..interval_attention.triton import interval_backward_launch, interval_forward_launch
from ..launch import launch, warps_for

ELEMENTS = 2048
"""Pairs of one program."""


@triton.jit
def packed_turn(
    x_ptr, cos_ptr, sin_ptr, out_ptr, N, GROUPS, R, HALF, stride_n, stride_g,
    BACK: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Queries and keys, turned. BACK: back, in place. Else queries to out [N, G R, D], keys behind them [N, G, D]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (token * G + group) * (R + 1) + head
    d = tl.arange(0, BD)  # pair (d, d + HALF) of a head
    inside = (row < N * GROUPS * (R + 1))[:, None] & (d < HALF)[None, :]
    member, head = row // (R + 1), row % (R + 1)
    token, group = member // GROUPS, member % GROUPS
    source = token * stride_n + group * stride_g + head * (2 * HALF)
    if BACK:
        target = source
    else:
        query, key = member * R + head, N.to(tl.int64) * GROUPS * R + member
        target = tl.where(head < R, query, key) * (2 * HALF)
    table = (token * HALF)[:, None] + d[None, :]
    first = tl.load(x_ptr + source[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + source[:, None] + d[None, :] + HALF, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + table, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        sin = -sin
    at = out_ptr + target[:, None] + d[None, :]
    tl.store(at, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=inside)


def _turn(qkv: Tensor, cos: Tensor, sin: Tensor, out: Tensor, size: int, back: bool) -> None:
    tokens, groups, width = qkv.shape
    queries = width // size - 2
    block = triton.next_power_of_2(size // 2)
    rows = max(1, ELEMENTS // block)
    launch(
        packed_turn, (triton.cdiv(tokens * groups * (queries + 1), rows),), qkv, cos.contiguous(), sin.contiguous(),
        out, tokens, groups, queries, size // 2, qkv.stride(0), qkv.stride(1),
        BACK=back, ROWS=rows, BD=block, num_warps=warps_for(ELEMENTS),
    )  # fmt: skip


def _slices(qkv: Tensor, turned: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries [N, G R, D] and keys [N, G, D], and the values [N, G, D] of qkv."""
    tokens, groups, width = qkv.shape
    queries = turned[: tokens * groups * (width - 2 * size)].view(tokens, -1, size)
    keys = turned[queries.numel() :].view(tokens, groups, size)
    return queries, keys, qkv[..., width - size :]


def packed_forward_launch(
    qkv: Tensor, cos: Tensor, sin: Tensor, k_start: Tensor, k_end: Tensor, size: int, scale: float,
    family: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """out [N, G R, D], turned queries and keys [N G (R + 1) D], log2 of the softmax's sum float32 [G R, N]."""
    qkv = qkv.contiguous()
    turned = torch.empty(qkv.numel() // qkv.shape[2] * (qkv.shape[2] - size), dtype=qkv.dtype, device=qkv.device)
    query, key, value = _slices(qkv, turned, size)
    if turns_in_place(size):
        queries = qkv.shape[2] - 2 * size
        _turn(qkv[..., queries:], cos, sin, key, size, back=False)  # every tile of queries reads the keys
        source = qkv[..., :queries].unflatten(2, (-1, size))
        out, lse = interval_forward_launch(source, key, value, k_start, k_end, scale, family, (cos, sin, query))
    else:
        _turn(qkv, cos, sin, turned, size, back=False)
        out, lse = interval_forward_launch(query, key, value, k_start, k_end, scale, family)
    return out, turned, lse


def packed_backward_launch(
    grad: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, k_start: Tensor, k_end: Tensor, out: Tensor, turned: Tensor,
    lse: Tensor, size: int, scale: float, seen_by: Tensor | None = None, family: str | None = None,
) -> Tensor:  # fmt: skip
    """Gradient of qkv, like it."""
    qkv = qkv.contiguous()
    query, key, value = _slices(qkv, turned, size)
    dqkv = torch.empty_like(qkv)
    heads = dqkv.unflatten(2, (-1, size))  # [N, G, R + 2, D]
    into = heads[:, :, :-2], heads[:, :, -2], heads[:, :, -1]
    angles = (cos, sin) if turns_in_place(size) else None
    interval_backward_launch(grad, query, key, value, k_start, k_end, out, lse, scale, seen_by, family, into, angles)
    if angles is None:  # between the halves of a pair there is padding
        _turn(dqkv, cos, sin, dqkv, size, back=True)
    return dqkv
