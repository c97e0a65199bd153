"""rotary: rotary position embedding of heads, in one pass."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose_backend
from ..checks import check_floats, require


def rotary(x: Tensor, cos: Tensor, sin: Tensor, backend: str = "auto") -> Tensor:
    """Turn pair (i, i + D/2) of every head by its position's angle i (rotate-half form, SPEC 2.2).

    x: [N, H, D] float, D even, any strides.  cos, sin: float32 or x's dtype [N, D/2], the same for all heads; no
    gradient flows to them.  Computed in float32 for half precisions, rounded once.  Nothing of x is kept for the
    backward pass, which is the turn back.  Returns [N, H, D].  Raises ValueError, naming the shapes, on wrong input.
    """
    name = "rotary"
    require(x.dim() == 3 and x.shape[2] % 2 == 0, name, "x must be [N, H, D], D even", x=x)
    wanted = (x.shape[0], x.shape[2] // 2)
    for table in (cos, sin):
        require(tuple(table.shape) == wanted, name, f"cos and sin must be {list(wanted)}", x=x, cos=cos, sin=sin)
    check_floats(name, x=x)
    check_floats(name, cos=cos, sin=sin)
    require(cos.device == x.device, name, f"cos and sin must be on {x.device}", x=x, cos=cos, sin=sin)
    if choose_backend(name, x.device, backend, x.dtype) == "triton":
        from .library import rotary_triton

        return rotary_triton(x, cos, sin)
    from .reference import rotary_reference

    return rotary_reference(x, cos, sin)
