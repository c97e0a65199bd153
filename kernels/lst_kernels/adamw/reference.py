"""adamw in PyTorch's operators: any device; what runs on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def adamw_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    copies: Sequence[Tensor],
    divisor: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """See `lst_kernels.adamw`. Reads the divisor."""
    by = float(divisor)
    if not math.isfinite(by):
        return
    size, root = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    for p, g, m, v in zip(params, grads, first, second, strict=True):
        g = g / by
        p.mul_(1 - lr * decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.addcdiv_(m, (v.sqrt() / root).add_(eps), value=-size)
    for p, copy in zip(params, copies, strict=False):
        copy.copy_(p.view(copy.shape))
