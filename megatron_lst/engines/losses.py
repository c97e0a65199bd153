"""Sums of losses by kind of target, and how a step's share of every rank becomes one StepResult."""

import math

import torch
from torch import Tensor

from megatron_lst.engines.base import StepResult
from megatron_lst.vocabulary import Vocabulary

KINDS = 4
"""all, speech, text, marker"""


def loss_sums(losses: Tensor, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Sums and counts over kinds of targets.

    Args:
        losses: float32 [N], 0 where the label is IGNORE.
        labels: int [N].

    Returns:
        float64 [8]: sums over all, speech, text and marker targets, then their counts.
    """
    counted = labels >= 0
    speech = (labels >= vocabulary.text_size) & (labels < vocabulary.text_marker)
    marker = (labels == vocabulary.text_marker) | (labels == vocabulary.speech_marker)
    kinds = torch.stack((counted, speech, counted & ~speech & ~marker, marker)).double()
    return torch.cat((kinds @ losses.detach().double(), kinds.sum(1)))


def step_result(values: list[float], grad_norm: float, skipped: bool) -> StepResult:
    """values [8 + n]: the sums of `loss_sums` over the global batch, then those of the n numbers of each rank."""
    means = [s / n if n else math.nan for s, n in zip(values[:KINDS], values[KINDS : 2 * KINDS], strict=True)]
    return StepResult(
        loss=means[0],
        loss_speech=means[1],
        loss_text=means[2],
        loss_marker=means[3],
        grad_norm=grad_norm,
        skipped=skipped,
        targets=int(values[KINDS]),
        numbers=tuple(values[2 * KINDS :]),
    )
