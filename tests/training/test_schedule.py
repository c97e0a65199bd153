"""The learning rate at the points that define it."""

import dataclasses

import pytest

from megatron_lst.config.schema import TrainingConfig
from megatron_lst.training.schedule import is_frozen, learning_rate

CONFIG = TrainingConfig(steps=1000, warmup_steps=100, lr=4e-4, min_lr_ratio=0.01)


@pytest.mark.parametrize(("step", "expected"), [(1, 4e-6), (50, 2e-4), (100, 4e-4), (550, 2.02e-4), (1000, 4e-6)])
def test_warmup_peak_middle_and_end(step: int, expected: float) -> None:
    assert learning_rate(step, CONFIG) == pytest.approx(expected, rel=1e-9)


def test_it_never_rises_after_the_warmup() -> None:
    rates = [learning_rate(s, CONFIG) for s in range(100, 1001)]
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))


def test_the_freeze_is_of_the_first_steps_alone() -> None:
    frozen = dataclasses.replace(CONFIG, freeze_global_steps=3)
    assert [is_frozen(step, frozen) for step in range(1, 6)] == [True, True, True, False, False]
    assert not any(is_frozen(step, CONFIG) for step in range(1, 6))
