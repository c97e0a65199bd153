"""adamw: one AdamW update of many tensors, each value read once and written once, the rounded copy with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import choose_backend
from ..checks import require


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    copies: Sequence[Tensor],
    divisor: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    backend: str = "auto",
) -> None:
    """In place, for each tensor p with gradient g, moments m and v, by update number `step` (from 1):

    g' = g / divisor; p -= lr decay p; m += (1 - beta1) (g' - m); v = beta2 v + (1 - beta2) g'^2;
    p -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps); copy = p, rounded.

    The arithmetic of `torch.optim.AdamW` in float32.  Where the divisor is not finite nothing changes: whoever computes
    it on the device from the gradients' norm need not wait for it to leave out an update.

    params, grads, first, second: as many float32 tensors, contiguous, those of one place of one size.  copies: as many
    bfloat16 or float16 ones, all of one dtype; or none.  divisor: float32 [1] on the same device.  Raises ValueError,
    naming the shapes, on wrong input.
    """
    name = "adamw"
    lists = (params, grads, first, second)
    require(all(len(x) == len(params) for x in lists), name, "as many gradients and moments as parameters")
    require(len(copies) in (0, len(params)), name, "as many copies as parameters, or none")
    require(divisor.dtype == torch.float32 and divisor.numel() == 1, name, "divisor must be float32 [1]", d=divisor)
    for tensors in zip(*lists, strict=True):
        named = dict(zip(("param", "grad", "first", "second"), tensors, strict=True))
        ok = all(t.dtype == torch.float32 and t.is_contiguous() and t.device == divisor.device for t in tensors)
        require(ok, name, f"must be float32, contiguous, on {divisor.device}", **named)
        require(len({t.numel() for t in tensors}) == 1, name, "must be of one size", **named)
    for param, copy in zip(params, copies, strict=False):
        ok = copy.dtype in (torch.bfloat16, torch.float16) and copy.dtype == copies[0].dtype and copy.is_contiguous()
        ok = ok and copy.numel() == param.numel() and copy.device == divisor.device
        require(ok, name, "a copy must be of one 16-bit dtype, contiguous, like its parameter", param=param, copy=copy)
    if not params:
        return
    scalars = (step, lr, *betas, eps, decay)
    if choose_backend(name, divisor.device, backend) == "triton":
        from .library import update

        update([*params], [*grads], [*first], [*second], [*copies], divisor, *scalars)
    else:
        from .reference import adamw_reference

        adamw_reference(params, grads, first, second, copies, divisor, *scalars)
