"""What a step's number alone decides: its learning rate (SPEC 8), and whether warm-started weights are frozen."""

import math

from megatron_lst.config.schema import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of `step`, counted from 1.

    The warm-up reaches the peak at step `warmup_steps`, the cosine its end at step `steps`.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def is_frozen(step: int, config: TrainingConfig) -> bool:
    """Whether the warm-started weights stand still in `step`, counted from 1."""
    return step <= config.freeze_global_steps
