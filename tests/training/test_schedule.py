"""The learning rate at the points that define it."""

import dataclasses

import pytest

from megatron_lst.config.schema import TrainingConfig
from megatron_lst.training.schedule import change, is_frozen, last_stable_step, learning_rate, phase

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


WSD = dataclasses.replace(CONFIG, schedule="wsd", decay_steps=200)


def test_constant_is_the_peak_whatever_the_length() -> None:
    constant = dataclasses.replace(CONFIG, schedule="constant")
    assert [learning_rate(s, constant) for s in (50, 100, 101, 1000, 5000)] == [2e-4, *[4e-4] * 4]


@pytest.mark.parametrize(
    ("step", "rate", "name"),
    [
        (50, 2e-4, "warmup"),
        (100, 4e-4, "warmup"),
        (101, 4e-4, "stable"),
        (800, 4e-4, "stable"),
        (801, 4e-4 * (1 - 0.99 / 200), "decay"),
        (900, 4e-4 * 0.505, "decay"),
        (1000, 4e-6, "decay"),
    ],
)
def test_warmup_stable_decay(step: int, rate: float, name: str) -> None:
    assert learning_rate(step, WSD) == pytest.approx(rate, rel=1e-9)
    assert phase(step, WSD) == name


def test_the_decay_is_a_tenth_where_nothing_is_said_and_never_cuts_the_warmup() -> None:
    assert last_stable_step(dataclasses.replace(WSD, decay_steps=None)) == 900
    assert last_stable_step(dataclasses.replace(WSD, decay_steps=950)) == 100
    tiny = dataclasses.replace(WSD, steps=3, warmup_steps=0, decay_steps=None)
    assert [learning_rate(s, tiny) for s in (1, 2, 3)] == pytest.approx([4e-4, 4e-4, 4e-6])


def test_a_longer_run_changes_no_rate_before_the_decay_of_wsd_but_does_in_a_cosine() -> None:
    assert all(learning_rate(s, WSD) == learning_rate(s, dataclasses.replace(WSD, steps=5000)) for s in range(1, 801))
    assert learning_rate(500, CONFIG) < learning_rate(500, dataclasses.replace(CONFIG, steps=5000))


def test_a_change_of_the_rate_is_told_with_both_values() -> None:
    longer = dataclasses.replace(CONFIG, steps=2000)
    said = change(1000, CONFIG, longer)
    assert said is not None
    assert f"from 4e-06 in step 1000 to {learning_rate(1001, longer):.4g} in step 1001" in said
    assert "training.steps from 1000 to 2000" in said
    assert change(1000, CONFIG, CONFIG) is None
    assert change(500, WSD, dataclasses.replace(WSD, steps=5000)) is None
    assert change(1000, WSD, dataclasses.replace(WSD, steps=5000)) is not None
    constant = dataclasses.replace(CONFIG, schedule="constant")
    assert change(1000, constant, dataclasses.replace(constant, steps=2000)) is None
    assert change(500, constant, dataclasses.replace(WSD, steps=1000)) is None
