"""adamw's Triton kernel as a PyTorch operator, and whether it is right on a device."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..backends import triton_version


@torch.library.custom_op("lst_kernels::adamw", mutates_args=("params", "first", "second", "copies"))
def update(
    params: list[Tensor],
    grads: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    copies: list[Tensor],
    divisor: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    from .triton import adamw_launch

    adamw_launch(params, grads, first, second, copies, divisor, step, lr, beta1, beta2, eps, decay)


@update.register_fake
def _(*_: Any) -> None:
    return None


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether three small updates agree with PyTorch's AdamW on this device, and one by NaN changes nothing; asked
    once, as an engine is built. Tensors without values trace what a GPU would run."""
    if device.type == "meta":
        return triton_version() is not None
    if device.type != "cuda" or triton_version() is None:
        return False
    try:
        return agrees(device)
    except Exception:  # whatever the compiler or the driver threw: it does not work here
        return False


def agrees(device: torch.device) -> bool:
    """The comparison of `works_on`; on a CPU under Triton's interpreter."""
    from . import adamw

    sizes, steps, divisor = (1, 5000, 2051), 3, torch.full((1,), 3.0, device=device)
    values = [torch.linspace(-2, 3, n, device=device) for n in sizes]
    ours = [v.clone() for v in values]
    theirs = [torch.nn.Parameter(v.clone()) for v in values]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    copies = [torch.zeros_like(v, dtype=torch.bfloat16) for v in values]
    peer = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1, "backend": "triton"}
    for step in range(1, steps + 1):
        grads = [torch.cos(v * (7 * step)) for v in values]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g / 3.0
        peer.step()
        adamw(ours, grads, first, second, copies, divisor, step=step, **options)  # type: ignore[arg-type]
    adamw(ours, grads, first, second, copies, divisor * float("nan"), step=steps + 1, **options)  # type: ignore[arg-type]
    close = all(torch.allclose(a, b.detach(), rtol=2e-6, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    # a last bit more than rounding: Triton's interpreter cuts bfloat16 off
    return close and all(torch.allclose(a, c.float(), rtol=2**-7, atol=0) for a, c in zip(ours, copies, strict=True))
