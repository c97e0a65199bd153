"""What a step's number alone decides: its learning rate (SPEC 8), and whether warm-started weights are frozen."""

import math

from megatron_lst.config.schema import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of `step`, counted from 1.

    The warm-up reaches the peak at step `warmup_steps`; cosine and decay reach their end at step `steps`.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    first = last_stable_step(config) if config.schedule == "wsd" else config.warmup_steps
    progress = min(1.0, max(0.0, (step - first) / max(1, config.steps - first)))
    share = 1 - progress if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def last_stable_step(config: TrainingConfig) -> int:
    """`wsd`: the last step at the peak rate; the decay begins after it."""
    decay = config.decay_steps or max(1, config.steps // 10)
    return max(config.warmup_steps, config.steps - decay)


def phase(step: int, config: TrainingConfig) -> str:
    """What the learning rate does in `step`: warmup, cosine, stable or decay."""
    if step <= config.warmup_steps:
        return "warmup"
    if config.schedule == "cosine":
        return "cosine"
    return "decay" if config.schedule == "wsd" and step > last_stable_step(config) else "stable"


def change(step: int, before: TrainingConfig, now: TrainingConfig) -> str | None:
    """One sentence where a run goes on after `step` with another learning rate than it would have had; else None.

    Args:
        before: what the run had until `step`.
    """
    old, new = learning_rate(step + 1, before), learning_rate(step + 1, now)
    if math.isclose(old, new, rel_tol=1e-9):
        return None
    keys = ("steps", "schedule", "decay_steps", "warmup_steps", "lr", "min_lr_ratio")
    changed = [
        f"training.{key} from {getattr(before, key)} to {getattr(now, key)}"
        for key in keys
        if getattr(before, key) != getattr(now, key)
    ]
    return (
        f"the learning rate goes from {learning_rate(step, before):.4g} in step {step} to {new:.4g} in step {step + 1} "
        f"({', '.join(changed)}); without the change it would be {old:.4g}"
    )


def is_frozen(step: int, config: TrainingConfig) -> bool:
    """Whether the warm-started weights stand still in `step`, counted from 1."""
    return step <= config.freeze_global_steps
