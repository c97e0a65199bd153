"""packed_attention: rotary embedding and interval attention of one projection of queries, keys and values."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose_backend
from ..checks import check_bounds, check_floats, check_intervals, require
from ..intervals import check_seen_by


def packed_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_start: Tensor,
    k_end: Tensor,
    size: int,
    scale: float | None = None,
    backend: str = "auto",
    seen_by: Tensor | None = None,
) -> Tensor:
    """`interval_attention` of queries and keys that `rotary` has turned, all of them slices of qkv.

    qkv: [N, G, (R + 2) D] float: for each of G groups R query heads, a key head and a value head, as Megatron-core's
    projection makes them.  cos, sin: float32 or qkv's dtype [N, D/2].  k_start, k_end: int32 [N], both non-decreasing.
    size: D.  scale defaults to D ** -0.5.  seen_by: as for `interval_attention`.  Returns [N, G R, D].  The gradient is
    written into one tensor like qkv, in the place where it belongs: slices one by one would be put together in another
    pass.  Raises ValueError, naming the shapes, on wrong input.
    """
    name = "packed_attention"
    require(qkv.dim() == 3 and size > 0 and size % 2 == 0, name, "qkv must be [N, G, (R + 2) D], D even", qkv=qkv)
    width = qkv.shape[2]
    require(width % size == 0 and width >= 3 * size, name, f"qkv must hold R + 2 heads of {size}", qkv=qkv)
    wanted = (qkv.shape[0], size // 2)
    for table in (cos, sin):
        require(tuple(table.shape) == wanted, name, f"cos and sin must be {list(wanted)}", qkv=qkv, cos=cos, sin=sin)
    check_floats(name, qkv=qkv)
    check_floats(name, cos=cos, sin=sin)
    require(cos.device == qkv.device, name, f"cos and sin must be on {qkv.device}", qkv=qkv, cos=cos, sin=sin)
    check_bounds(name, qkv, qkv.shape[0], k_start=k_start, k_end=k_end)
    check_intervals(name, qkv.shape[0], k_start, k_end)
    check_seen_by(name, qkv.shape[0], k_start, k_end, seen_by)
    scale = size**-0.5 if scale is None else scale
    if choose_backend(name, qkv.device, backend, qkv.dtype) == "triton":
        from .library import packed_attention_triton

        return packed_attention_triton(qkv, cos, sin, k_start, k_end, size, scale, seen_by)
    from .reference import packed_attention_reference

    return packed_attention_reference(qkv, cos, sin, k_start, k_end, size, scale)
