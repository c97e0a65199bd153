"""Frequencies of the global transformer's rotary position embedding, for all three implementations (SPEC 3)."""

import math

import torch
from torch import Tensor

from megatron_lst.config.schema import RopeScalingConfig


def scaled(frequencies: Tensor, scaling: RopeScalingConfig | None) -> Tensor:
    """Radians a position of each pair, [head size / 2], as `model.rope_scaling` changes them; None: as they are.

    `llama3`: a frequency f turns c f / 2 pi times within the original context c. From `high_frequency` turns on it
    stays f, up to `low_frequency` turns it is f / factor, and between the two it goes from one to the other on a line.
    """
    if scaling is None or scaling.kind == "none":
        return frequencies
    turns = scaling.context * frequencies / (2 * math.pi)
    share = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    share = share.clamp(0, 1)
    return torch.where(share == 1, frequencies, share * frequencies + (1 - share) * frequencies / scaling.factor)
