"""patch_attention in Triton: one program a patch and a few heads, all the patch's queries, online softmax.

Patches are short (1 to a few tokens), so this is element-wise work on CUDA cores: tensor cores would idle on
tiles of one row.  The one backward program of a patch computes dq, dk and dv together; it alone writes its
tokens, and the loose tokens up to the next patch, so nothing is cleared, nothing is added up and no atomics
are needed.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch, warps_for
from ..ragged import next_start, patch_span

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def patch_attention_forward(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, T, scale,
    stride_qp, stride_qq, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    H, Q: tl.constexpr, DH: tl.constexpr,
    BQ: tl.constexpr, BH: tl.constexpr, BDH: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)  # patch; 64 bits, for p * stride goes beyond 2^31 elements
    h = tl.program_id(1) * BH + tl.arange(0, BH)  # heads
    e = tl.arange(0, BDH)  # values of a head
    i = tl.arange(0, BQ)  # queries of the patch
    r = tl.arange(0, BT)  # tokens of a step
    head = (h < H)[:, None] & (e < DH)[None, :]  # [BH, BDH]
    query = (i < Q)[:, None, None] & head[None]  # [BQ, BH, BDH]
    start, n = patch_span(start_ptr, end_ptr, p, T)
    q_at = p * stride_qp + i[:, None, None] * stride_qq + h[None, :, None] * stride_qh + e[None, None, :]
    q = tl.load(q_ptr + q_at, mask=query, other=0.0).to(tl.float32) * (scale * LOG2E)
    highest = tl.full([BQ, BH], float("-inf"), tl.float32)  # of the scores so far
    total = tl.zeros([BQ, BH], tl.float32)  # sum of exp2(score - highest)
    mixed = tl.zeros([BQ, BH, BDH], tl.float32)
    for t in range(0, n, BT):
        inside = t + r < n
        row = (start + t + r).to(tl.int64)[:, None, None]  # [BT, 1, 1], token
        token = inside[:, None, None] & head[None]  # [BT, BH, BDH]
        k_at = row * stride_kt + h[None, :, None] * stride_kh + e[None, None, :]
        v_at = row * stride_vt + h[None, :, None] * stride_vh + e[None, None, :]
        k = tl.load(k_ptr + k_at, mask=token, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + v_at, mask=token, other=0.0).to(tl.float32)
        scores = tl.sum(q[:, None, :, :] * k[None, :, :, :], axis=3)  # [BQ, BT, BH]
        scores = tl.where(inside[None, :, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))  # [BQ, BH]
        shrink = tl.exp2(highest - higher)  # [BQ, BH]; what was summed so far was relative to a lower maximum
        weights = tl.exp2(scores - higher[:, None, :])  # [BQ, BT, BH]
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = mixed * shrink[:, :, None] + tl.sum(weights[:, :, :, None] * v[None, :, :, :], axis=1)
        highest = higher
    seen = tl.where(total > 0, total, 1.0)  # an empty patch gives 0, not NaN
    out_at = ((p * Q + i[:, None, None]) * H + h[None, :, None]) * DH + e[None, None, :]  # out is contiguous
    tl.store(out_ptr + out_at, (mixed / seen[:, :, None]).to(out_ptr.dtype.element_ty), mask=query)
    lse = tl.where(total > 0, highest + tl.log2(seen), 0.0)
    tl.store(lse_ptr + (p * Q + i[:, None]) * H + h[None, :], lse, mask=(i < Q)[:, None] & (h < H)[None, :])


@triton.jit
def patch_attention_backward(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, out_ptr, lse_ptr, grad_ptr, dq_ptr, dk_ptr, dv_ptr, P, T, scale,
    stride_qp, stride_qq, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    H, Q: tl.constexpr, DH: tl.constexpr,
    BQ: tl.constexpr, BH: tl.constexpr, BDH: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    e = tl.arange(0, BDH)
    i = tl.arange(0, BQ)
    r = tl.arange(0, BT)
    head = (h < H)[:, None] & (e < DH)[None, :]
    query = (i < Q)[:, None, None] & head[None]
    start, n = patch_span(start_ptr, end_ptr, p, T)
    after = start
    if n > 0:
        after = next_start(start_ptr, end_ptr, tl.program_id(0), P, T)  # first token of the next patch that has one
    q_at = p * stride_qp + i[:, None, None] * stride_qq + h[None, :, None] * stride_qh + e[None, None, :]
    q = tl.load(q_ptr + q_at, mask=query, other=0.0).to(tl.float32)
    out_at = ((p * Q + i[:, None, None]) * H + h[None, :, None]) * DH + e[None, None, :]  # out is contiguous
    grad = tl.load(grad_ptr + out_at, mask=query, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + out_at, mask=query, other=0.0).to(tl.float32)
    delta = tl.sum(out * grad, axis=2)  # [BQ, BH], what the softmax's gradient subtracts
    pair = (i < Q)[:, None] & (h < H)[None, :]  # [BQ, BH]
    lse = tl.load(lse_ptr + (p * Q + i[:, None]) * H + h[None, :], mask=pair, other=0.0)
    dq = tl.zeros([BQ, BH, BDH], tl.float32)
    for t in range(0, after - start, BT):
        inside = t + r < n
        row = (start + t + r).to(tl.int64)[:, None, None]  # [BT, 1, 1], token
        token = inside[:, None, None] & head[None]
        k_at = row * stride_kt + h[None, :, None] * stride_kh + e[None, None, :]
        v_at = row * stride_vt + h[None, :, None] * stride_vh + e[None, None, :]
        k = tl.load(k_ptr + k_at, mask=token, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + v_at, mask=token, other=0.0).to(tl.float32)
        scores = tl.sum(q[:, None, :, :] * k[None, :, :, :], axis=3) * (scale * LOG2E)  # [BQ, BT, BH]
        weights = tl.where(inside[None, :, None], tl.exp2(scores - lse[:, None, :]), 0.0)
        dweights = tl.sum(grad[:, None, :, :] * v[None, :, :, :], axis=3)  # [BQ, BT, BH]
        dscores = weights * (dweights - delta[:, None, :]) * scale
        dq += tl.sum(dscores[:, :, :, None] * k[None, :, :, :], axis=1)
        dk = tl.sum(dscores[:, :, :, None] * q[:, None, :, :], axis=0)  # [BT, BH, BDH]
        dv = tl.sum(weights[:, :, :, None] * grad[:, None, :, :], axis=0)  # [BT, BH, BDH]
        at = (row * H + h[None, :, None]) * DH + e[None, None, :]  # dk and dv are contiguous
        mine = (start + t + r < after)[:, None, None] & head[None]  # the loose tokens after the patch get zeros
        tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=mine)
        tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mine)
    tl.store(dq_ptr + out_at, dq.to(dq_ptr.dtype.element_ty), mask=query)
    if tl.program_id(0) == 0:  # the loose tokens before the first patch that is not empty
        first = next_start(start_ptr, end_ptr, tl.program_id(0) - 1, P, T)
        zero = tl.zeros([BH, BDH], dk_ptr.dtype.element_ty)
        for t in range(first):
            at = ((p + t) * H + h[:, None]) * DH + e[None, :]  # p is 0, in 64 bits
            tl.store(dk_ptr + at, zero, mask=head)
            tl.store(dv_ptr + at, zero, mask=head)


def _tile(queries: int, heads: int, dim: int) -> dict[str, int]:
    """Block sizes: about 256 elements of a token's row a warp, few enough registers for four tokens at
    once."""
    bdh, bq = triton.next_power_of_2(dim), triton.next_power_of_2(queries)
    bh = max(1, min(triton.next_power_of_2(heads), 512 // (bdh * max(bq, 4))))
    return {"BQ": bq, "BH": bh, "BDH": bdh, "BT": 4, "num_warps": warps_for(4 * bh * bdh)}


def _unit_last(t: Tensor) -> Tensor:
    """The kernels read heads and tokens at any stride, a head's own values side by side."""
    return t if t.stride(-1) == 1 else t.contiguous()


def patch_attention_forward_launch(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, end: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [P, k, H, D], log2-sum-exp2 of the scaled scores float32 [P, k, H])."""
    q, k, v = _unit_last(q), _unit_last(k), _unit_last(v)
    p, queries, h, d = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tile = _tile(queries, h, d)
    launch(
        patch_attention_forward, (p, triton.cdiv(h, tile["BH"])), q, k, v, start, end, out, lse,
        k.shape[0], scale, *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], h, Q=queries, DH=d, **tile,
    )  # fmt: skip
    return out, lse


def patch_attention_backward_launch(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor,
    end: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv), contiguous."""
    q, k, v, grad = _unit_last(q), _unit_last(k), _unit_last(v), grad.contiguous()
    p, queries, h, d = q.shape
    make = torch.empty if p else torch.zeros  # without a patch no program writes the tokens
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (make(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    tile = _tile(queries, h, d)
    launch(
        patch_attention_backward, (p, triton.cdiv(h, tile["BH"])), q, k, v, start, end, out, lse, grad,
        dq, dk, dv, p, k.shape[0], scale,
        *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], h, Q=queries, DH=d, **tile,
    )  # fmt: skip
    return dq, dk, dv
