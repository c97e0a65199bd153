"""interval_attention: every query sees one interval of the keys; both ends of the intervals never go back."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose_backend
from ..checks import check_bounds, check_floats, check_intervals, require
from ..intervals import check_seen_by


def _check(q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, seen_by: Tensor | None) -> None:
    name = "interval_attention"
    require(q.dim() == 3 and k.dim() == 3, name, "q must be [Nq, H, D] and k, v [Nk, Hk, D]", q=q, k=k, v=v)
    require(k.shape == v.shape and k.shape[2] == q.shape[2], name, "k and v must be [Nk, Hk, D]", q=q, k=k, v=v)
    require(k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0, name, "Hk must divide H", q=q, k=k)
    check_floats(name, q=q, k=k, v=v)
    check_bounds(name, q, q.shape[0], k_start=k_start, k_end=k_end)
    check_intervals(name, k.shape[0], k_start, k_end)
    check_seen_by(name, k.shape[0], k_start, k_end, seen_by)


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    scale: float | None = None,
    backend: str = "auto",
    seen_by: Tensor | None = None,
) -> Tensor:
    """Softmax attention of query t over keys [k_start[t], k_end[t]) (SPEC 2, 3 and 5).

    Covers document-causal and sliding-window self-attention (k_start = max(document start, t - W + 1), k_end
    = t + 1) and the decoder's cross-attention (k keys a unit).  q: [Nq, H, D]; k, v: [Nk, Hk, D], Hk divides
    H (query head h reads key head h // (H / Hk)), one floating dtype.  k_start, k_end: int32 [Nq], both
    non-decreasing; an empty interval (k_end <= k_start) gives 0.  scale defaults to D ** -0.5.  Softmax and
    sums in float32 for half precisions.  seen_by: `queries_of_keys(k_start, k_end, Nk)`, int32 [2, Nk], for the
    backward pass, which finds it itself if it is not given: intervals that many layers share are turned round once.
    Returns [Nq, H, D].  Raises ValueError, naming the shapes, on wrong input.
    """
    name = "interval_attention"
    _check(q, k, v, k_start, k_end, seen_by)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose_backend(name, q.device, backend, q.dtype)
    if chosen == "triton":
        from .library import interval_attention_triton

        return interval_attention_triton(q, k, v, k_start, k_end, scale, seen_by)
    from .reference import interval_attention_reference

    return interval_attention_reference(q, k, v, k_start, k_end, scale)


def interval_attention_joint(
    q: Tensor,
    kv: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    scale: float | None = None,
    backend: str = "auto",
    seen_by: Tensor | None = None,
) -> Tensor:
    """`interval_attention` of keys kv[:, 0] and values kv[:, 1], whose gradient comes in one tensor like kv.

    kv: [Nk, 2, Hk, D].  For the rest see `interval_attention`.
    """
    name = "interval_attention"
    require(kv.dim() == 4 and kv.shape[1] == 2, name, "kv must be [Nk, 2, Hk, D]", q=q, kv=kv)
    key, value = kv.unbind(1)
    if choose_backend(name, q.device, backend, q.dtype) != "triton":
        return interval_attention(q, key, value, k_start, k_end, scale, backend, seen_by)
    _check(q, key, value, k_start, k_end, seen_by)
    from .joint import interval_attention_joint_triton

    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return interval_attention_joint_triton(q, kv.contiguous(), k_start, k_end, scale, seen_by)
