"""interval_attention in plain PyTorch, forward and backward: any device, float64 included; what runs on a
CPU.

Two ways, chosen by the widest interval.  Narrow intervals (the decoder's cross-attention sees a handful of
keys) are gathered, one key offset at a time.  Wide ones go in tiles of queries, each against its own slice of
the keys [min k_start, max k_end), so that neither time nor memory grows with Nq * Nk.  Both keep no scores
for the backward pass.  A masked key has weight exactly 0, so a query's result does not depend on the values
of keys that it does not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import accumulator

QUERIES_PER_TILE = 128
GATHER_UP_TO = 8
"""Widest interval that is served by gathering."""


class _Tile(NamedTuple):
    """Queries [first, last) against keys [lo, hi); `hidden` [m, n] marks what a query must not see."""

    first: int
    last: int
    lo: int
    hi: int
    hidden: Tensor
    empty: Tensor | None  # [m] bool: queries that see nothing, None when there are none


def _tiles(k_start: Tensor, k_end: Tensor, keys: int) -> Iterator[_Tile]:
    starts, ends = k_start.tolist(), k_end.tolist()
    for first in range(0, len(starts), QUERIES_PER_TILE):
        last = min(first + QUERIES_PER_TILE, len(starts))
        lo, hi = max(starts[first], 0), min(ends[last - 1], keys)  # all keys that the tile's queries see
        if lo >= hi:
            continue
        key = torch.arange(lo, hi, device=k_start.device, dtype=torch.int32)  # [n]
        begin, end = k_start[first:last, None], k_end[first:last, None]  # [m, 1]
        empty = k_end[first:last] <= k_start[first:last]
        yield _Tile(first, last, lo, hi, (key < begin) | (key >= end), empty if bool(empty.any()) else None)


def _group(t: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """[m, H, D] -> [Hk, G * m, D]: the query heads of one key head side by side."""
    m, h, d = t.shape
    return t.to(dtype).reshape(m, kv_heads, h // kv_heads, d).permute(1, 2, 0, 3).reshape(kv_heads, -1, d)


def _ungroup(t: Tensor, m: int) -> Tensor:
    """[Hk, G * m, D] -> [m, H, D]."""
    hk, gm, d = t.shape
    return t.view(hk, gm // m, m, d).permute(2, 0, 1, 3).reshape(m, -1, d)


def _weights(q: Tensor, k: Tensor, tile: _Tile, scale: float) -> Tensor:
    """Softmax weights [Hk, G * m, n] of one tile; 0 in the rows of queries that see nothing."""
    scores = torch.bmm(q, k.mT).mul_(scale)  # [Hk, G * m, n]
    per_query = scores.view(scores.shape[0], -1, *tile.hidden.shape)  # [Hk, G, m, n]
    per_query.masked_fill_(tile.hidden, float("-inf"))
    weights = scores.softmax(-1)
    if tile.empty is not None:
        weights.view_as(per_query).masked_fill_(tile.empty[:, None], 0.0)
    return weights


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, scale: float) -> Tensor:
        dtype, hk = accumulator(q.dtype), k.shape[1]
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        for t in _tiles(k_start, k_end, k.shape[0]):
            qs, ks = _group(q[t.first : t.last], hk, dtype), k[t.lo : t.hi].to(dtype).transpose(0, 1)
            mixed = torch.bmm(_weights(qs, ks, t, scale), v[t.lo : t.hi].to(dtype).transpose(0, 1))
            out[t.first : t.last] = _ungroup(mixed, t.last - t.first)
        ctx.save_for_backward(q, k, v, k_start, k_end)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, k_start, k_end = ctx.saved_tensors
        dtype, hk = accumulator(q.dtype), k.shape[1]
        dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        dk, dv = (torch.zeros(k.shape, dtype=dtype, device=k.device) for _ in range(2))
        for t in _tiles(k_start, k_end, k.shape[0]):
            qs, do = (_group(x[t.first : t.last], hk, dtype) for x in (q, grad))
            ks, vs = (x[t.lo : t.hi].to(dtype).transpose(0, 1) for x in (k, v))
            weights = _weights(qs, ks, t, ctx.scale)
            dv[t.lo : t.hi] += torch.bmm(weights.mT, do).transpose(0, 1)
            dweights = torch.bmm(do, vs.mT)  # [Hk, G * m, n]
            correction = (weights * dweights).sum(-1, keepdim=True)  # [Hk, G * m, 1]
            dscores = dweights.sub_(correction).mul_(weights).mul_(ctx.scale)
            dq[t.first : t.last] = _ungroup(torch.bmm(dscores, ks), t.last - t.first)
            dk[t.lo : t.hi] += torch.bmm(dscores.mT, qs).transpose(0, 1)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _offsets(k_start: Tensor, k_end: Tensor, keys: int, width: int) -> tuple[Tensor, Tensor]:
    """Key index of each query's w-th key [W, Nq] int64 (clamped), and which of them it sees [W, Nq] bool."""
    index = k_start.long() + torch.arange(width, device=k_start.device)[:, None]
    return index.clamp(0, max(keys - 1, 0)), index < k_end


def _add_rows(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """out[index[i]] += rows[i]; rows [N, ...]; repeated indices add up in order."""
    flat = rows.reshape(rows.shape[0], -1)
    out.view(out.shape[0], -1).scatter_add_(0, index[:, None].expand_as(flat), flat)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, scale: float, width: int
    ) -> Tensor:
        n, h, d = q.shape
        dtype, hk = accumulator(q.dtype), k.shape[1]
        qg = q.to(dtype).reshape(n, hk, h // hk, d)  # [Nq, Hk, G, D]
        index, seen = _offsets(k_start, k_end, k.shape[0], width)
        scores = torch.stack([(qg * k[i].to(dtype)[:, :, None]).sum(-1) for i in index])  # [W, Nq, Hk, G]
        scores = scores.mul_(scale).masked_fill_(~seen[:, :, None, None], float("-inf"))
        weights = scores.softmax(0).masked_fill_(~seen[:, :, None, None], 0.0)  # also where nothing is seen
        out = torch.zeros(qg.shape, dtype=dtype, device=q.device)
        for i, w in zip(index, weights, strict=True):
            out.addcmul_(w[..., None], v[i].to(dtype)[:, :, None])
        ctx.save_for_backward(q, k, v, weights, index)
        ctx.scale = scale
        return out.view(n, h, d).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, weights, index = ctx.saved_tensors
        n, h, d = q.shape
        hk, dtype = k.shape[1], weights.dtype
        qg, do = (x.to(dtype).reshape(n, hk, h // hk, d) for x in (q, grad))
        dweights = torch.stack([(do * v[i].to(dtype)[:, :, None]).sum(-1) for i in index])  # [W, Nq, Hk, G]
        dscores = weights * (dweights - (weights * dweights).sum(0)) * ctx.scale
        dq = torch.zeros(qg.shape, dtype=dtype, device=q.device)
        dk, dv = (torch.zeros(k.shape, dtype=dtype, device=k.device) for _ in range(2))
        for i, w, ds in zip(index, weights, dscores, strict=True):
            dq.addcmul_(ds[..., None], k[i].to(dtype)[:, :, None])
            _add_rows(dk, i, (ds[..., None] * qg).sum(2))
            _add_rows(dv, i, (w[..., None] * do).sum(2))
        return dq.view(n, h, d).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def interval_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, scale: float, gather_up_to: int = GATHER_UP_TO
) -> Tensor:
    """q [Nq, H, D], k and v [Nk, Hk, D], k_start and k_end int32 [Nq] -> [Nq, H, D].

    See `lst_kernels.interval_attention`.  Reads the intervals' values (on a GPU: a host sync).
    """
    if q.shape[0] and k.shape[0]:
        width = int((k_end - k_start).max())
        if width <= gather_up_to:
            return _Gathered.apply(q, k, v, k_start, k_end, scale, max(width, 1))
    return _Tiled.apply(q, k, v, k_start, k_end, scale)
