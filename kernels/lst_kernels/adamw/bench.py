"""adamw beside PyTorch's fused AdamW and the rounding that follows it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting

TENSORS = 8
STEP, OPTIONS = 3, {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1}


def cases(setting: Setting) -> Iterator[Case]:
    """Gate and up of some global layers. Bytes counted: 30 a value; held is the new value after one update."""
    from torch.optim.adamw import adamw as torch_adamw

    from .. import adamw
    from .reference import adamw_reference

    size = 2 * setting.global_ffn * setting.global_heads * setting.global_head_dim
    made = torch.randn(4, TENSORS * size, device=setting.device)
    made[3].abs_()  # mean squares
    copies = [torch.empty(size, dtype=torch.bfloat16, device=setting.device) for _ in range(TENSORS)]
    divisor = torch.full((1,), 3.0, device=setting.device)

    def parts(flat: Tensor) -> list[Tensor]:
        return list(flat.detach().chunk(TENSORS))

    def ours(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        adamw(parts(p), parts(g), parts(m), parts(v), copies, divisor, step=STEP, backend="triton", **OPTIONS)  # type: ignore[arg-type]
        return p

    def fused(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        params = parts(p)
        steps = list(torch.full((TENSORS,), STEP - 1.0, device=p.device).unbind())
        torch_adamw(
            params, parts(g), parts(m), parts(v), [], steps, fused=True, grad_scale=divisor[0], found_inf=None,
            amsgrad=False, beta1=0.9, beta2=0.95, lr=1e-3, weight_decay=0.1, eps=1e-8, maximize=False,
        )  # fmt: skip
        torch._foreach_copy_(copies, params)
        return p

    def reference(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        adamw_reference(parts(p), parts(g), parts(m), parts(v), [], divisor, STEP, 1e-3, 0.9, 0.95, 1e-8, 0.1)
        return p

    for name, way in (("triton", ours), ("torch fused, copy", fused)):
        yield Case("adamw", f"{TENSORS} x {size}", name, way, reference, list(made), 30.0 * made[0].numel(), 0.0,
                   "bytes", differentiable=False)  # fmt: skip
