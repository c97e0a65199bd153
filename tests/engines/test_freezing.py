"""`training.freeze_global_steps`: warm-started weights keep every bit until the step, on any layout, then learn."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_lst.config.schema import Config
from megatron_lst.reference import ReferenceModel
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.single import engine_of
from tests.support.slow import with_slow
from tests.support.toy import initial_weights, toy_config, toy_rows

N = 3
DIRECT = {"model__text_path": "direct"}


def frozen_config(**changes: Any) -> Config:
    """Frozen for N steps, with a decay that would be seen."""
    return toy_config(training__freeze_global_steps=N, training__weight_decay=0.5, **changes)


def zero(stage: int, **changes: Any) -> dict[str, Any]:
    return {"engine__name": "deepspeed", "engine__zero_stage": stage, **changes}


def parts(config: Config, weights: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Warm-started part of each weight that has one -> (now, at the start); `...[fresh]`: the rest of such a table."""
    found = {}
    for name, before in initial_weights(config).items():
        now = weights[name]
        if name.startswith("global_transformer.") or name == "text_norm.weight":
            found[name] = now, before
        elif name in ("text_embedding.weight", "text_head.weight"):
            rows = config.vocabulary.text_size
            found[name] = now[:rows], before[:rows]
            found[f"{name}[fresh]"] = now[rows:], before[rows:]
        else:
            found[f"{name}[fresh]"] = now, before
    return found


def moved(config: Config, weights: dict[str, Tensor]) -> dict[str, bool]:
    return {name: not torch.equal(now, before) for name, (now, before) in parts(config, weights).items()}


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "one, bf16": (1, {"training__precision": "bf16"}),
    "TP2+SP": (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    "PP2 DP2": (4, {"parallel__pipeline": 2}),
    "DP2 without distributed optimizer": (2, {"engine__distributed_optimizer": False}),
    "ZeRO 0 DP2": (2, zero(0)),
    "ZeRO 1 DP2": (2, zero(1)),
    "ZeRO 3 DP2": (2, zero(3)),
    "ZeRO 2 TP2": (2, zero(2, parallel__tensor=2)),
}


@functools.cache
def reference_curve(ranks: RankPool, steps: int) -> dict[str, Any]:
    return ranks.run(functools.partial(train, steps=steps), 1, frozen_config(**DIRECT))[0]


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", with_slow(LAYOUTS, "ZeRO 0 DP2", "ZeRO 1 DP2", "ZeRO 2 TP2"))
def test_frozen_weights_keep_every_bit_until_the_step_and_move_after_it(ranks: RankPool, name: str) -> None:
    world, changes = LAYOUTS[name]
    config = frozen_config(**DIRECT, **changes)
    at_the_end = ranks.run(functools.partial(train, steps=N), world, config)[0]
    after = ranks.run(functools.partial(train, steps=N + 2), world, config)[0]
    for weight, did in moved(config, at_the_end["weights"]).items():
        assert did == weight.endswith("[fresh]"), weight
    assert all(moved(config, after["weights"]).values())
    if config.training.precision == "fp32":
        expected = reference_curve(ranks, N + 2)
        assert after["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert after["norms"] == pytest.approx(expected["norms"], rel=1e-4)


@pytest.mark.multiprocess
def test_without_the_freeze_they_move_at_once(ranks: RankPool) -> None:
    """Negative control, with a gradient and by decay alone."""
    config = toy_config(training__weight_decay=0.5, **DIRECT)
    weights = ranks.run(functools.partial(train, steps=1), 1, config)[0]["weights"]
    assert all(moved(config, weights).values())


RESUMES: dict[str, tuple[int, tuple[int, dict[str, Any]], tuple[int, dict[str, Any]]]] = {
    "before the switch, one": (N - 1, LAYOUTS["one"], LAYOUTS["one"]),
    "after the switch, one": (N + 1, LAYOUTS["one"], LAYOUTS["one"]),
    "before the switch, PP2 DP2 -> TP2+SP": (N - 1, LAYOUTS["PP2 DP2"], LAYOUTS["TP2+SP"]),
    "at the switch, ZeRO 1 DP2 -> ZeRO 3 DP2": (N, LAYOUTS["ZeRO 1 DP2"], LAYOUTS["ZeRO 3 DP2"]),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", RESUMES)
def test_a_resume_on_either_side_of_the_switch_goes_on_as_if_uninterrupted(
    ranks: RankPool, tmp_path: Path, name: str
) -> None:
    step, (world, changes), (later_world, later) = RESUMES[name]
    save = functools.partial(train, steps=step, save_at=step, folder=str(tmp_path))
    ranks.run(save, world, frozen_config(**DIRECT, **changes))
    resume = functools.partial(train, steps=N + 3, load=str(tmp_path), first=step)
    config = frozen_config(**DIRECT, **later)
    result = ranks.run(resume, later_world, config)[0]
    expected = reference_curve(ranks, N + 3)
    assert result["losses"] == pytest.approx(expected["losses"][step:], rel=1e-5)
    assert all(moved(config, result["weights"]).values())


def test_frozen_gradients_count_neither_in_the_norm_nor_in_clipping() -> None:
    """The norm is that of the oracle with the frozen weights' gradients left out; clipped updates follow it."""
    config = frozen_config(training__clip=0.05)
    rows = toy_rows(config, 8)
    with engine_of(config) as engine:
        oracle = ReferenceModel(config.model, config.vocabulary).double()
        oracle.load_state_dict(engine.export_weights())
        total, targets = torch.zeros((), dtype=torch.float64), 0
        for row in rows:
            labels = torch.as_tensor(row.labels).long()
            total = total + torch.nn.functional.cross_entropy(oracle(row), labels, ignore_index=-100, reduction="sum")
            targets += int((labels >= 0).sum())
        (total / targets).backward()
        gradients = {name: p.grad for name, p in oracle.named_parameters()}
        learning = [g for name, g in gradients.items() if not name.startswith("global_transformer.")]
        norm = float(torch.stack([g.norm() for g in learning]).norm())
        whole = float(torch.stack([g.norm() for g in gradients.values()]).norm())
        found = engine.step(rows, lr=1e-3, frozen=True)
    assert found.grad_norm == pytest.approx(norm, rel=1e-4)
    assert norm < 0.99 * whole


SLOW_LAYOUTS = ("one", "TP2+SP", "PP2 DP2", "DP2 without distributed optimizer", "ZeRO 1 DP2", "ZeRO 3 DP2")


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["lst", "baseline"])
@pytest.mark.parametrize("name", SLOW_LAYOUTS)
def test_the_trunk_learns_at_its_share_of_the_rate(ranks: RankPool, name: str, kind: str) -> None:
    """AdamW's update, decay included, is the rate times what does not depend on it."""
    world, changes = LAYOUTS[name]
    if kind == "baseline" and name not in ("one", "TP2+SP"):
        pytest.skip("the groups are the same; the layouts are run with the LST")
    model = DIRECT if kind == "lst" else {"model__kind": "baseline"}
    usual, slow = (
        toy_config(training__weight_decay=0.5, training__trunk_lr_ratio=r, **model, **changes) for r in (1.0, 0.25)
    )
    after, slower = (ranks.run(functools.partial(train, steps=1), world, c)[0]["weights"] for c in (usual, slow))
    for weight, before in initial_weights(usual).items():
        share = 0.25 if weight.startswith(("global_transformer.", "text_")) else 1.0
        expected = share * (after[weight] - before)
        assert expected.abs().max() > 1e-5, weight
        torch.testing.assert_close(
            slower[weight] - before, expected, rtol=2e-3, atol=2e-7, msg=lambda m, w=weight: f"{w}: {m}"
        )
