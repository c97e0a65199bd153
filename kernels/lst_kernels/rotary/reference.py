"""rotary in plain PyTorch: any device, float64 included; what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import accumulator


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, H, D], cos and sin [N, D/2] -> [N, H, D].  See `lst_kernels.rotary`."""
    first, second = x.to(accumulator(x.dtype)).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
