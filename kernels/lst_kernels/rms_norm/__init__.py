"""rms_norm: RMSNorm, alone or with the residual stream that it stands in."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose_backend
from ..checks import check_floats, require
from .reference import Into, rms_norm_reference, rms_norm_residual_reference


def _check(name: str, x: Tensor, weight: Tensor) -> None:
    require(weight.dim() == 1 and x.shape[-1:] == weight.shape, name, "weight must be [d]", x=x, weight=weight)
    check_floats(name, x=x, weight=weight)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, backend: str = "auto", *, into: Into | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (SPEC 2.2).

    x: [..., d] float; weight: [d] of x's dtype.  Computed in float32 for half precisions; kept for the backward pass
    are x and one number a row.  Returns [..., d].  Raises ValueError, naming the shapes, on wrong input.

    into: called in the backward pass; gives a contiguous [d], float32 for half precisions, to which the weight's
    gradient is added, unrounded by the kernel, and whether it is the first: then it is written, whatever was there.
    Autograd gets a tensor without meaning in its place, so that the weight's hooks run.
    """
    _check("rms_norm", x, weight)
    if choose_backend("rms_norm", x.device, backend, x.dtype) == "triton":
        from .library import rms_norm_triton

        return rms_norm_triton(x, weight, eps, into)
    return rms_norm_reference(x, weight, eps, into)


def rms_norm_residual(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
    *,
    into: Into | None = None,
) -> tuple[Tensor, Tensor]:
    """(rms_norm(total), total), where total = residual + x, or x itself without a residual.

    The sum is made where it is normed, and total's own gradient is added where the norm's is computed: written out it
    costs a pass forward and two backward.  residual: of x's shape and dtype.  total is rounded to x's dtype before it
    is normed.  into: as for `rms_norm`.  Raises ValueError, naming the shapes, on wrong input.
    """
    _check("rms_norm", x, weight)
    if residual is not None:
        require(residual.shape == x.shape, "rms_norm", "residual must be like x", x=x, residual=residual)
        check_floats("rms_norm", x=x, residual=residual)
    if choose_backend("rms_norm", x.device, backend, x.dtype) == "triton":
        from .library import rms_norm_residual_triton

        return rms_norm_residual_triton(x, weight, residual, eps, into)
    return rms_norm_residual_reference(x, weight, residual, eps, into)
