"""What may change when a run goes on."""

import dataclasses

import pytest

from megatron_lst.config.load import build, merge, parse_overrides, to_plain
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.training.resume import continue_config, resolve


def config(*overrides: str) -> Config:
    wanted = parse_overrides(["training.steps=90", "training.global_batch=10", *overrides], Config)
    return build(Config, merge({}, wanted))


STORED = to_plain(resolve(config()))


@pytest.mark.parametrize(
    "override",
    [
        "parallel.tensor=2",
        "engine.overlap=false",
        "engine.fp8=hybrid",
        "training.micro_batch=2",
        "data.workers=7",
        "checkpoint.every=5",
        "run.dir=elsewhere",
    ],
)
def test_what_may_differ(override: str) -> None:
    assert continue_config(config(override), STORED) == resolve(config(override))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.lr=1e-3", "training.lr"),
        ("model.layers=3", "model.layers"),
        ("data.seed=5", "data.seed"),
        ("engine.name=deepspeed", "engine.name"),
        ("patching.tau1=7", "patching.tau1"),
        ("training.global_batch=20", "training.global_batch"),
    ],
)
def test_what_may_not_is_named_with_both_values(override: str, key: str) -> None:
    with pytest.raises(UserError, match=key) as caught:
        continue_config(config(override), STORED)
    assert override.partition("=")[2].rstrip("3").rstrip("e-") in str(caught.value)


def test_extending_a_run_moves_neither_curriculum_nor_streams() -> None:
    longer = continue_config(config("training.steps=900"), STORED)
    assert (longer.patching.tau1, longer.patching.tau2) == (300, 600)
    assert longer.data.streams == 10
    # the control: a new run of that length has another curriculum
    assert resolve(config("training.steps=900")).patching.tau1 == 3000


def test_a_constant_rate_may_get_a_decay_and_no_other_schedule_may_change() -> None:
    constant = to_plain(resolve(config("training.schedule=constant")))
    wsd = ("training.schedule=wsd", "training.warmup_steps=1", "training.decay_steps=10")
    stored = merge(constant, {"training": {"warmup_steps": 1}})
    assert continue_config(config(*wsd), stored).training.decay_steps == 10
    with pytest.raises(UserError, match=r"training\.schedule: 'constant' in the run, 'cosine' now"):
        continue_config(config(), constant)
    with pytest.raises(UserError, match=r"training\.schedule: 'cosine' in the run, 'wsd' now"):
        continue_config(config("training.schedule=wsd"), STORED)


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(config())
    assert resolve(once) == once
    assert dataclasses.replace(once) == once
