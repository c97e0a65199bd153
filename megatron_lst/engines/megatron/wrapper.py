"""Megatron-core's data-parallel wrapper whose gradient buffer is never zeroed: a step's first gradients are written.

A weight that got no gradient in a step is zeroed before gradients are reduced (`clear_stale`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from torch import nn

from megatron_lst.parallel.weight_gradients import expect_first, take_first


class WritingDataParallel(DistributedDataParallel):
    """See above. Between parameters the buffer holds the zeros it was made with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for buffer in self.buffers:
            buffer.reset = _keep

    def zero_grad_buffer(self) -> None:
        super().zero_grad_buffer()
        for parameter in self.params_with_grad:
            expect_first(parameter.main_grad)

    def _make_backward_post_hook(self, param: nn.Parameter) -> Callable[..., None]:
        added: Callable[..., None] = super()._make_backward_post_hook(param)
        weight: Any = param

        def hook(*unused: Any) -> None:
            by_product = weight.grad_added_to_main_grad
            if weight.grad is not None and not by_product and take_first(weight.main_grad):
                weight.main_grad.copy_(weight.grad)
                weight.grad_added_to_main_grad = True  # so that it is not added besides
            added(*unused)
            weight.grad_added_to_main_grad = by_product

        return hook


def _keep() -> None:
    """In the place of a buffer's reset."""


def clear_stale(model: Sequence[Any]) -> None:
    """Zero what no gradient of this step was written to; before it is reduced."""
    for chunk in model:
        for parameter in getattr(chunk, "params_with_grad", ()):
            if take_first(parameter.main_grad):
                parameter.main_grad.zero_()
