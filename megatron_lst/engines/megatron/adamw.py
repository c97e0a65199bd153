"""AdamW by `lst_kernels.adamw` in the place of PyTorch's: gradients divided, weights rounded in the same pass."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lst_kernels import adamw


class FusedAdamW(torch.optim.AdamW):
    """PyTorch's AdamW with another step. The number of updates stands in each group, the moments where PyTorch's are.

    Attributes:
        divisor: float32 [1], what gradients are divided by in the next step; where it is not finite nothing changes.
        copies: 16-bit weights by the float32 parameter that they are rounded from.
    """

    def __init__(self, params: Any, *, adam_w_mode: bool = True, **options: Any) -> None:
        assert adam_w_mode, "decoupled decay alone"
        super().__init__(params, **options)
        self.divisor: Tensor | None = None
        self.copies: dict[Tensor, Tensor] = {}
        self._stepped: list[dict[str, Any]] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._stepped = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            group["step"] = int(group.get("step", 0)) + 1
            self._stepped.append(group)
            for p in params:
                for name in ("exp_avg", "exp_avg_sq"):
                    if name not in self.state[p]:
                        self.state[p][name] = torch.zeros_like(p)
            divisor = torch.ones(1, device=params[0].device) if self.divisor is None else self.divisor
            # Masters of 16-bit weights have a copy, float32 weights are their own masters.
            for part in ([p for p in params if p in self.copies], [p for p in params if p not in self.copies]):
                adamw(
                    [p.detach() for p in part],
                    [p.grad for p in part if p.grad is not None],
                    [self.state[p]["exp_avg"] for p in part],
                    [self.state[p]["exp_avg_sq"] for p in part],
                    [self.copies[p] for p in part if p in self.copies],
                    divisor,
                    step=group["step"],
                    lr=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                    decay=group["weight_decay"],
                )

    def forget_step(self) -> None:
        """The last step's divisor was not finite: nothing changed, and nothing is counted."""
        for group in self._stepped:
            group["step"] -= 1
        self._stepped = []


def write_weights(core: Any) -> None:
    """Let the updates of Megatron-core's optimizers write the 16-bit weights, which they copy in another pass."""
    for part in core.chained_optimizers:
        inner = part.optimizer
        if isinstance(inner, FusedAdamW) and hasattr(part, "_copy_main_params_to_model_params"):
            inner.copies = dict(_copies(part))
            part._copy_main_params_to_model_params = lambda: None


def _copies(part: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(master, the 16-bit weight or the shard of it that this rank updates)."""
    distributed = hasattr(part, "shard_float16_groups")
    models = part.shard_float16_groups if distributed else part.float16_groups
    mains = part.shard_fp32_from_float16_groups if distributed else part.fp32_from_float16_groups
    for group, masters in zip(models, mains, strict=True):
        for model, main in zip(group, masters, strict=True):
            yield main, model.detach()
