"""add_product: a matrix product added to a float32 matrix, in the product's own accumulator."""

from __future__ import annotations

from torch import Tensor

from ..backends import triton_version
from ..checks import FLOATS, accumulator, require


def add_product(into: Tensor, left: Tensor, right: Tensor, backend: str = "auto", *, first: bool = False) -> None:
    """into += left @ right, where a weight's gradient is added up; first: into = left @ right, whatever was there.

    into: [m, n], float32 for half precisions, else of the operands' dtype; left [m, k], right [k, n] of one dtype; any
    strides.  On a GPU the product of half precisions is added without being rounded first, and without another pass
    over `into`, where this PyTorch and this device are found to do so (`library.works_on`); elsewhere it is rounded to
    the operands' dtype and added.  Raises ValueError, naming the shapes, on wrong input.
    """
    name = "add_product"
    tensors = {"into": into, "left": left, "right": right}
    require(all(t.dim() == 2 for t in tensors.values()), name, "all must be matrices", **tensors)
    wanted = (left.shape[0], right.shape[1])
    require(tuple(into.shape) == wanted and left.shape[1] == right.shape[0], name, "shapes must fit", **tensors)
    require(left.dtype == right.dtype and left.dtype in FLOATS, name, "left and right must be of one dtype", **tensors)
    require(into.dtype == accumulator(left.dtype), name, "into must be of the accumulator's dtype", **tensors)
    require(backend in ("auto", "fused", "reference"), name, f"no backend {backend!r}", **tensors)
    if backend == "auto":
        from .library import works_on

        # as for kernels of Triton: meta tensors trace what a GPU would run
        meta = left.is_meta and triton_version() is not None
        backend = "fused" if meta or (left.is_cuda and works_on(left.device, left.dtype)) else "reference"
    if backend == "fused":
        from .library import added, put

        (put if first else added)(into, left, right)
    elif first:
        into.copy_(left @ right)
    else:
        into += left @ right
