"""swiglu in plain PyTorch: any device, float64 included; what runs on a CPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def swiglu_reference(x: Tensor) -> Tensor:
    """x [..., 2 F] -> [..., F], in x's dtype throughout.  See `lst_kernels.swiglu`."""
    gate, up = x.chunk(2, dim=-1)
    return silu(gate) * up
