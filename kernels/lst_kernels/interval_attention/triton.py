"""interval_attention in Triton: three kernels, none with atomics, so the gradients are the same bits from run
to run.

Interval ends never go back, so the keys that a tile of queries needs are one range, from its first query's
k_start to its last query's k_end, and the queries that see a tile of keys are one range too: tiles outside
are never visited and no mask is ever stored.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..intervals import queries_of_keys
from ..launch import launch
from .tiles import Tiles, padded, tiles_for, tiles_on

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(2147483647)


@triton.jit
def _rows(ptr, rows, inside, stride, e, DH: tl.constexpr, BDH: tl.constexpr):
    """Load rows [m] of a [*, DH] matrix as [m, BDH], zeros outside.

    64-bit row addresses measured fewer registers than a 64-bit base with 32-bit offsets in the tile.
    """
    at = ptr + rows.to(tl.int64)[:, None] * stride + e[None, :]
    if DH == BDH:
        return tl.load(at, mask=inside[:, None], other=0.0)
    return tl.load(at, mask=inside[:, None] & (e < DH)[None, :], other=0.0)


@triton.jit
def _put(ptr, value, rows, inside, stride, e, DH: tl.constexpr, BDH: tl.constexpr):
    """Store [m, BDH] as rows [m] of a [*, DH] matrix."""
    at = ptr + rows.to(tl.int64)[:, None] * stride + e[None, :]
    mask = inside[:, None]
    if DH != BDH:
        mask = mask & (e < DH)[None, :]
    tl.store(at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _turn(first, second, cos_ptr, sin_ptr, rows, inside, BACK: tl.constexpr, HALF: tl.constexpr):
    """Pairs (first, second) [m, HALF] float32 of heads, turned by cos, sin [*, HALF] as in `rotary`: [m, 2 HALF]."""
    at = rows.to(tl.int64)[:, None] * HALF + tl.arange(0, HALF)[None, :]
    cos = tl.load(cos_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    if BACK:
        sin = -sin
    turned = tl.join(first * cos - second * sin, second * cos + first * sin)  # [m, HALF, 2]
    return tl.reshape(tl.permute(turned, (0, 2, 1)), [first.shape[0], 2 * HALF])


@triton.jit
def _turn_back(value, cos_ptr, sin_ptr, rows, inside, BDH: tl.constexpr):
    """The gradient [m, BDH] of turned heads, turned back."""
    first, second = tl.split(tl.permute(tl.reshape(value, [value.shape[0], 2, BDH // 2]), (0, 2, 1)))
    return _turn(first, second, cos_ptr, sin_ptr, rows, inside, True, BDH // 2)


@triton.jit
def _middle(begin, end, real, low, high, B: tl.constexpr):
    """Of [low, high) the whole tiles of B that every real row's interval [begin, end) holds: those need no mask."""
    first = tl.max(tl.where(real, begin, 0))
    last = tl.min(tl.where(real, end, FAR))
    first = tl.minimum(tl.maximum(tl.cdiv(first, B) * B, low), high)
    return first, tl.maximum(tl.minimum(last, high) // B * B, first)


@triton.jit
def _attend_forward(
    highest, total, mixed, q, k_ptr, v_ptr, begin, end, low, high, last, e, scale, stride_kt, stride_vt,
    MASKED: tl.constexpr, DH: tl.constexpr, BDH: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Keys [low, high) of one head, a tile at a time; those from `last` on are not there."""
    for n in range(low, high, BN):
        j = n + tl.arange(0, BN)  # [BN], keys of this step
        k = _rows(k_ptr, j, j < last, stride_kt, e, DH, BDH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)  # [BM, BN], in powers of 2
        if MASKED:
            seen = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None])  # [BM, BN]
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))  # [BM]
        base = higher
        if MASKED:
            base = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen nothing yet
        shrink = tl.exp2(highest - base)  # what was summed so far was relative to a lower maximum
        weights = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v = _rows(v_ptr, j, j < last, stride_vt, e, DH, BDH)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision=PRECISION)
        highest = higher
    return highest, total, mixed


@triton.jit
def _attend_dq(
    dq, q, grad, lse, delta, k_ptr, v_ptr, begin, end, low, high, last, e, scale, stride_kt, stride_vt,
    MASKED: tl.constexpr, DH: tl.constexpr, BDH: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The same for the gradient of the queries."""
    for n in range(low, high, BN):
        j = n + tl.arange(0, BN)  # [BN], keys of this step
        k = _rows(k_ptr, j, j < last, stride_kt, e, DH, BDH)
        v = _rows(v_ptr, j, j < last, stride_vt, e, DH, BDH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        weights = tl.exp2(scores - lse[:, None])  # [BM, BN], the softmax again
        if MASKED:
            weights = tl.where((j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None]), weights, 0.0)
        dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def interval_forward(
    q_ptr, k_ptr, v_ptr, ks_ptr, ke_ptr, out_ptr, lse_ptr, NQ, NK, scale,
    stride_qt, stride_qg, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    cos_ptr, sin_ptr, turned_ptr,
    GROUP, DH: tl.constexpr, BDH: tl.constexpr, PRECISION: tl.constexpr, TURN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """TURN: queries are turned as they are read, by the angles of cos and sin, and written for the backward pass."""
    hq = tl.program_id(1).to(tl.int64)  # query head; 64 bits, for head * stride goes beyond 2^31 elements
    hk = hq // GROUP  # the key head that GROUP query heads share
    q_ptr += hk * stride_qg + (hq - hk * GROUP) * stride_qh
    i = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM], queries of this tile
    e = tl.arange(0, BDH)  # [BDH], values of a head; DH rounded up to a power of 2
    real = i < NQ
    begin = tl.load(ks_ptr + i, mask=real, other=FAR)  # beyond the last query: an empty interval, far behind
    end = tl.load(ke_ptr + i, mask=real, other=0)
    # Both ends never decrease, so the tile's keys are one range; it begins at a whole tile, for aligned loads.
    low = tl.maximum(tl.min(begin), 0) // BN * BN
    high = tl.minimum(tl.max(end), NK)
    if TURN:
        half = tl.arange(0, BDH // 2)
        first = _rows(q_ptr, i, real, stride_qt, half, BDH // 2, BDH // 2).to(tl.float32)
        second = _rows(q_ptr + BDH // 2, i, real, stride_qt, half, BDH // 2, BDH // 2).to(tl.float32)
        q = _turn(first, second, cos_ptr, sin_ptr, i, real, False, BDH // 2).to(q_ptr.dtype.element_ty)
        _put(turned_ptr + hq * stride_oh, q, i, real, stride_ot, e, DH, BDH)  # laid out like out
    else:
        q = _rows(q_ptr, i, real, stride_qt, e, DH, BDH)
    highest = tl.full([BM], float("-inf"), tl.float32)  # highest score of each query so far
    total = tl.zeros([BM], tl.float32)  # sum of exp2(score - highest)
    mixed = tl.zeros([BM, BDH], tl.float32)  # the same weights times the values
    first, last = _middle(begin, end, real, low, high, BN)
    k_head, v_head = k_ptr + hk * stride_kh, v_ptr + hk * stride_vh
    highest, total, mixed = _attend_forward(
        highest, total, mixed, q, k_head, v_head, begin, end, low, first, high, e, scale, stride_kt, stride_vt,
        True, DH, BDH, PRECISION, BN,
    )  # fmt: skip
    highest, total, mixed = _attend_forward(
        highest, total, mixed, q, k_head, v_head, begin, end, first, last, high, e, scale, stride_kt, stride_vt,
        False, DH, BDH, PRECISION, BN,
    )  # fmt: skip
    highest, total, mixed = _attend_forward(
        highest, total, mixed, q, k_head, v_head, begin, end, last, high, high, e, scale, stride_kt, stride_vt,
        True, DH, BDH, PRECISION, BN,
    )  # fmt: skip
    some = tl.where(total > 0, total, 1.0)  # a query without a key gives 0, not NaN
    _put(out_ptr + hq * stride_oh, mixed / some[:, None], i, real, stride_ot, e, DH, BDH)
    lse = tl.where(total > 0, highest + tl.log2(some), 0.0)  # log2 of the softmax's denominator; 0 where empty
    tl.store(lse_ptr + hq * NQ + i, lse, mask=real)


@triton.jit
def interval_backward_dq(
    q_ptr, k_ptr, v_ptr, ks_ptr, ke_ptr, out_ptr, lse_ptr, grad_ptr, delta_ptr, dq_ptr, NQ, NK, scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    stride_dt, stride_dg, stride_dh, cos_ptr, sin_ptr,
    GROUP, DH: tl.constexpr, BDH: tl.constexpr, PRECISION: tl.constexpr, TURN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries; on the way delta = sum(out * grad), which the other kernel reads.

    TURN: dq is turned back by the angles of cos and sin before it is rounded; so is dk below.
    """
    hq = tl.program_id(1).to(tl.int64)  # query head; 64 bits, for head * stride goes beyond 2^31 elements
    hk = hq // GROUP  # the key head that GROUP query heads share
    i = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM], queries of this tile
    e = tl.arange(0, BDH)  # [BDH], values of a head; DH rounded up to a power of 2
    real = i < NQ
    begin = tl.load(ks_ptr + i, mask=real, other=FAR)  # beyond the last query: an empty interval, far behind
    end = tl.load(ke_ptr + i, mask=real, other=0)
    low = tl.maximum(tl.min(begin), 0) // BN * BN
    high = tl.minimum(tl.max(end), NK)
    grad = _rows(grad_ptr + hq * stride_oh, i, real, stride_ot, e, DH, BDH)
    out = _rows(out_ptr + hq * stride_oh, i, real, stride_ot, e, DH, BDH)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)  # [BM], what the softmax's gradient subtracts
    tl.store(delta_ptr + hq * NQ + i, delta, mask=real)
    lse = tl.load(lse_ptr + hq * NQ + i, mask=real, other=0.0)
    q = _rows(q_ptr + hq * stride_qh, i, real, stride_qt, e, DH, BDH)
    dq = tl.zeros([BM, BDH], tl.float32)
    first, last = _middle(begin, end, real, low, high, BN)
    k_head, v_head = k_ptr + hk * stride_kh, v_ptr + hk * stride_vh
    dq = _attend_dq(
        dq, q, grad, lse, delta, k_head, v_head, begin, end, low, first, high, e, scale, stride_kt, stride_vt,
        True, DH, BDH, PRECISION, BN,
    )  # fmt: skip
    dq = _attend_dq(
        dq, q, grad, lse, delta, k_head, v_head, begin, end, first, last, high, e, scale, stride_kt, stride_vt,
        False, DH, BDH, PRECISION, BN,
    )  # fmt: skip
    dq = _attend_dq(
        dq, q, grad, lse, delta, k_head, v_head, begin, end, last, high, high, e, scale, stride_kt, stride_vt,
        True, DH, BDH, PRECISION, BN,
    )  # fmt: skip
    dq *= scale
    if TURN:
        dq = _turn_back(dq, cos_ptr, sin_ptr, i, real, BDH)
    _put(dq_ptr + hk * stride_dg + (hq - hk * GROUP) * stride_dh, dq, i, real, stride_dt, e, DH, BDH)


@triton.jit
def interval_backward_dkdv(
    q_ptr, k_ptr, v_ptr, ks_ptr, ke_ptr, first_ptr, last_ptr, lse_ptr, grad_ptr, delta_ptr, dk_ptr, dv_ptr,
    NQ, NK, scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    stride_dt, stride_dh, cos_ptr, sin_ptr,
    GROUP, DH: tl.constexpr, BDH: tl.constexpr, PRECISION: tl.constexpr, TURN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys: over every query, and every head of the group, that sees it."""
    hk = tl.program_id(1).to(tl.int64)  # key head
    j = tl.program_id(0) * BN + tl.arange(0, BN)  # [BN], keys of this tile
    e = tl.arange(0, BDH)  # [BDH], values of a head; DH rounded up to a power of 2
    real = j < NK
    k = _rows(k_ptr + hk * stride_kh, j, real, stride_kt, e, DH, BDH)
    v = _rows(v_ptr + hk * stride_vh, j, real, stride_vt, e, DH, BDH)
    # first and last: the queries [first[j], last[j]) that see key j
    first, last = tl.load(first_ptr + j, mask=real, other=FAR), tl.load(last_ptr + j, mask=real, other=0)
    low = tl.min(first) // BM * BM
    high = tl.minimum(tl.max(last), NQ)
    # Between them every query sees every key of the tile.
    whole = tl.max(tl.where(real, first, 0))
    until = tl.minimum(tl.min(tl.where(real, last, FAR)), NQ)
    dk = tl.zeros([BN, BDH], tl.float32)
    dv = tl.zeros([BN, BDH], tl.float32)
    steps = tl.cdiv(tl.maximum(high - low, 0), BM)  # tiles of queries for one head
    for step in range(GROUP * steps):  # one loop over heads and tiles: two nested ones cost registers
        g = step // steps  # query head within the group
        m = low + (step - g * steps) * BM  # first query of this step
        hq = hk * GROUP + g
        i = m + tl.arange(0, BM)
        inside = i < high
        q = _rows(q_ptr + hq * stride_qh, i, inside, stride_qt, e, DH, BDH)
        grad = _rows(grad_ptr + hq * stride_oh, i, inside, stride_ot, e, DH, BDH)
        lse = tl.load(lse_ptr + hq * NQ + i, mask=inside, other=0.0)
        delta = tl.load(delta_ptr + hq * NQ + i, mask=inside, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
        weights = tl.exp2(scores - lse[None, :])  # [BN, BM]
        if (m < whole) | (m + BM > until):
            begin = tl.load(ks_ptr + i, mask=inside, other=FAR)
            end = tl.load(ke_ptr + i, mask=inside, other=0)
            weights = tl.where((j[:, None] >= begin[None, :]) & (j[:, None] < end[None, :]), weights, 0.0)
        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)  # [BN, BM]
        dscores = weights * (dweights - delta[None, :])
        dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    dk *= scale
    if TURN:
        dk = _turn_back(dk, cos_ptr, sin_ptr, j, real, BDH)
    _put(dk_ptr + hk * stride_dh, dk, j, real, stride_dt, e, DH, BDH)
    _put(dv_ptr + hk * stride_dh, dv, j, real, stride_dt, e, DH, BDH)


def _unit_last(t: Tensor) -> Tensor:
    """The kernels read heads and tokens at any stride, a head's own values side by side."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _constants(q: Tensor, family: str | None) -> tuple[dict[str, int | str], Tiles]:
    dim = q.shape[2]
    block = padded(dim)
    shape = {
        "DH": dim,
        "BDH": block,
        # tf32 means nothing for 16-bit input
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    return shape, tiles_for(family, q.dtype, block) if family else tiles_on(q.device, q.dtype, block)


def interval_forward_launch(
    q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, scale: float, family: str | None = None,
    turn: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [Nq, H, D], log2-sum-exp2 of the scaled scores float32 [H, Nq]).

    q: or [Nq, Hk, H / Hk, D], where its heads are not evenly apart.
    turn: cos and sin [Nq, D / 2], by which q is turned as it is read, and where it is written, contiguous [Nq, H, D];
    for D see `tiles.turns_in_place`.
    """
    q, k, v = _unit_last(q if q.dim() == 4 else q.unflatten(1, (k.shape[1], -1))), _unit_last(k), _unit_last(v)
    nq, hk, group, dim = q.shape
    h = hk * group
    out = torch.empty(nq, h, dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(h, nq, dtype=torch.float32, device=q.device)
    constants, tiles = _constants(out, family)
    cos, sin, turned = (lse, lse, out) if turn is None else (turn[0].contiguous(), turn[1].contiguous(), turn[2])
    launch(
        interval_forward, (triton.cdiv(nq, tiles.forward.BM), h), q, k, v, k_start, k_end, out, lse,
        nq, k.shape[0], scale, *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
        cos, sin, turned, group, **constants, TURN=turn is not None, **tiles.forward._asdict(),
    )  # fmt: skip
    return out, lse


def interval_backward_launch(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, out: Tensor, lse: Tensor,
    scale: float, seen_by: Tensor | None = None, family: str | None = None,
    into: tuple[Tensor, Tensor, Tensor] | None = None, angles: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv), contiguous.

    seen_by: `queries_of_keys(k_start, k_end, Nk)`, if it is there.
    into: where they are written instead: dq as [Nq, Hk, H / Hk, D], dk and dv of the same strides.
    angles: cos and sin [Nq, D / 2] by which `rotary` has turned q and k: dq and dk are turned back. D is then as
    `tiles.turns_in_place` wants it, and Nq = Nk.
    """
    q, k, v = _unit_last(q), _unit_last(k), _unit_last(v)
    out, grad = out.contiguous(), grad.contiguous()
    nq, h, _ = q.shape
    nk, hk, _ = k.shape
    if into is None:
        dq = torch.empty(nq, hk, h // hk, q.shape[2], dtype=q.dtype, device=q.device)
        dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    else:
        dq, dk, dv = into
    delta = torch.empty_like(lse)
    first, last = queries_of_keys(k_start, k_end, nk) if seen_by is None else seen_by
    constants, tiles = _constants(q, family)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2])
    cos, sin = (lse, lse) if angles is None else (angle.contiguous() for angle in angles)
    turns = angles is not None
    launch(
        interval_backward_dq, (triton.cdiv(nq, tiles.dq.BM), h), q, k, v, k_start, k_end, out, lse, grad,
        delta, dq, nq, nk, scale, *strides, *dq.stride()[:3], cos, sin, h // hk, **constants, TURN=turns,
        **tiles.dq._asdict(),
    )  # fmt: skip
    launch(
        interval_backward_dkdv, (triton.cdiv(nk, tiles.dkdv.BN), hk), q, k, v, k_start, k_end, first, last,
        lse, grad, delta, dk, dv, nq, nk, scale, *strides, *dk.stride()[:2], cos, sin, h // hk,
        **constants, TURN=turns, **tiles.dkdv._asdict(),
    )  # fmt: skip
    return dq if into else dq.view(q.shape), dk, dv
