"""swiglu: the gated activation of a feed-forward block, in one pass each way."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose_backend
from ..checks import check_floats, require


def swiglu(x: Tensor, backend: str = "auto") -> Tensor:
    """silu(gate) * up, where x is gate and up side by side (SPEC 2.2).

    x: [..., 2 F] float.  Returns [..., F].  The Triton kernels compute in float32 for half precisions and round
    once; the backward pass keeps x alone.  Raises ValueError, naming the shape, on wrong input.
    """
    name = "swiglu"
    require(x.dim() >= 1 and x.shape[-1] % 2 == 0, name, "x must be [..., 2 F]", x=x)
    check_floats(name, x=x)
    if choose_backend(name, x.device, backend, x.dtype) == "triton":
        from .library import swiglu_triton

        return swiglu_triton(x)
    from .reference import swiglu_reference

    return swiglu_reference(x)
