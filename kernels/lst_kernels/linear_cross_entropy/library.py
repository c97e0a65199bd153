"""The softmax between the head's two matrix products, as PyTorch operators on Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .triton import softmax_ahead_launch, softmax_gradient_launch, softmax_statistics_launch


@torch.library.custom_op("lst_kernels::softmax_statistics", mutates_args=())
def statistics(logits: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    return softmax_statistics_launch(logits, column)


@statistics.register_fake
def _(logits: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    made = [logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2)]
    return made[0], made[1]


@torch.library.custom_op("lst_kernels::softmax_gradient", mutates_args=("logits",))
def gradient(logits: Tensor, normaliser: Tensor, column: Tensor, grad: Tensor) -> None:
    softmax_gradient_launch(logits, normaliser, column, grad)


@gradient.register_fake
def _(logits: Tensor, normaliser: Tensor, column: Tensor, grad: Tensor) -> None:
    return None


@torch.library.custom_op("lst_kernels::softmax_ahead", mutates_args=("logits", "normaliser", "target"))
def ahead(logits: Tensor, column: Tensor, grad: Tensor, normaliser: Tensor, target: Tensor) -> None:
    softmax_ahead_launch(logits, column, grad, normaliser, target)


@ahead.register_fake
def _(logits: Tensor, column: Tensor, grad: Tensor, normaliser: Tensor, target: Tensor) -> None:
    return None
