"""The trainer cannot tell which engine it holds: ZeRO 0 to 3 give Megatron's curve and resume anywhere."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("deepspeed")

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.engines.deepspeed.settings import merged
from megatron_lst.errors import UserError
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.slow import with_slow
from tests.support.toy import toy_config, toy_rows

pytestmark = pytest.mark.multiprocess


def zero(stage: int, **changes: Any) -> Config:
    return toy_config(engine__name="deepspeed", engine__zero_stage=stage, **changes)


TP2 = {"parallel__tensor": 2}
CURVES: dict[str, tuple[int, Config]] = {
    "ZeRO 0 DP2": (2, zero(0)),
    "ZeRO 1 DP2": (2, zero(1)),
    "ZeRO 2 DP2": (2, zero(2)),
    "ZeRO 3 DP2": (2, zero(3)),
    "ZeRO 0 TP2": (2, zero(0, **TP2)),
    "ZeRO 2 TP2 DP2": (4, zero(2, **TP2)),
    "ZeRO 1 TP2+SP": (2, zero(1, parallel__sequence=True, **TP2)),
    "ZeRO 3 TP2 DP2+SP": (4, zero(3, parallel__sequence=True, **TP2)),
    "ZeRO 3 TP2": (2, zero(3, **TP2)),
    "ZeRO 1 offload DP2": (2, zero(1, engine__offload_optimizer=True)),
}


@functools.cache
def megatron_curve(ranks: RankPool) -> dict[str, Any]:
    return ranks.run(train, 1, toy_config())[0]


def agree(result: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    assert result["losses"] == pytest.approx(expected["losses"][first:], rel=1e-5)
    assert result["norms"] == pytest.approx(expected["norms"][first:], rel=1e-4)
    assert result["hashes"] == expected["hashes"][first:]


@pytest.mark.parametrize(
    "name", with_slow(CURVES, "ZeRO 0 TP2", "ZeRO 1 TP2+SP", "ZeRO 2 TP2 DP2", "ZeRO 3 TP2 DP2+SP")
)
def test_same_curve_as_megatron(ranks: RankPool, name: str) -> None:
    world, config = CURVES[name]
    expected = megatron_curve(ranks)
    results = ranks.run(train, world, config)
    for result in results:
        agree(result, expected)
        for score, reference in zip(result["scores"], expected["scores"], strict=True):
            torch.testing.assert_close(score, reference, rtol=2e-3, atol=2e-3)
    weights = results[0]["weights"]
    for key, weight in expected["weights"].items():
        torch.testing.assert_close(weights[key], weight, rtol=2e-2, atol=2e-4, msg=key)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_same_curve_with_biases_and_wide_heads(ranks: RankPool, stage: int) -> None:
    """Biases are sharded with the rows of their matrices, and count so in the gradient's norm."""
    changes = {"model__qkv_bias": True, "model__head_size": 24, "model__kv_heads": 2, "model__no_rope_every": 3}
    expected = ranks.run(train, 1, toy_config(**changes))[0]
    for result in ranks.run(train, 2, zero(stage, **TP2, **changes)):
        agree(result, expected)


PAIRS: dict[str, tuple[tuple[int, Config], tuple[int, Config]]] = {
    "ZeRO 1, 2 -> 4 ranks": ((2, zero(1)), (4, zero(1))),
    "ZeRO 1, 2 -> 1 rank": ((2, zero(1)), (1, zero(1))),
    "ZeRO 3, 2 -> 4 ranks": ((2, zero(3)), (4, zero(3))),
    "ZeRO 3 DP2 -> ZeRO 2 TP2 DP2": ((2, zero(3)), (4, zero(2, **TP2))),
    "ZeRO 0 -> ZeRO 3 DP2": ((1, zero(0)), (2, zero(3))),
}


@pytest.mark.parametrize("name", with_slow(PAIRS, "ZeRO 3 DP2 -> ZeRO 2 TP2 DP2"))
def test_resumed_at_another_size(ranks: RankPool, tmp_path: Path, name: str) -> None:
    (world, config), (later_world, later_config) = PAIRS[name]
    save = functools.partial(train, steps=5, save_at=5, folder=str(tmp_path))
    ranks.run(save, world, config)
    resume = functools.partial(train, load=str(tmp_path), first=5)
    expected = megatron_curve(ranks)
    for result in ranks.run(resume, later_world, later_config):
        agree(result, expected, first=5)


def skipped_steps(config: Config) -> list[Any]:
    """A step from broken weights, then one from good ones: (skipped, weights kept, loss)."""
    engine = build_engine(config)
    rows = toy_rows(config, 8)
    weights = engine.export_weights()
    broken = {**weights, "decoder.norm.weight": torch.full_like(weights["decoder.norm.weight"], float("inf"))}
    engine.load_weights(broken)
    bad = engine.step(rows, lr=1e-3)
    after = engine.export_weights()
    kept = all(torch.equal(after[name], broken[name]) for name in broken)
    engine.load_weights(weights)
    good = engine.step(rows, lr=1e-3)
    moved = not torch.equal(engine.export_weights()["decoder.head.weight"], weights["decoder.head.weight"])
    engine.close()
    return [bad.skipped, kept, good.skipped, moved, good.loss]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_step_that_is_not_finite_is_skipped(ranks: RankPool, stage: int) -> None:
    bad, kept, good, moved, loss = ranks.run(skipped_steps, 1, zero(stage))[0]
    assert bad
    assert kept
    assert not good
    assert moved
    assert loss == pytest.approx(megatron_curve(ranks)["losses"][0], rel=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16(ranks: RankPool, stage: int) -> None:
    expected = megatron_curve(ranks)
    result = ranks.run(functools.partial(train, steps=3), 1, zero(stage, training__precision="bf16"))[0]
    assert result["losses"] == pytest.approx(expected["losses"][:3], rel=5e-3)


def test_a_file_is_merged_visibly(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}))
    settings, changes = merged(zero(2, engine__deepspeed_config=str(path)), 1)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["stage"] == 2
    assert changes == {"zero_optimization.reduce_bucket_size": 1000, "wall_clock_breakdown": True}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"gradient_clipping": 5}', "gradient_clipping is set by training.clip"),
        ('{"zero_optimization": {"stage": 1}}', "zero_optimization.stage is set by engine.zero_stage"),
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
    ],
)
def test_a_file_that_contradicts_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        merged(zero(2, engine__deepspeed_config=str(path)), 1)


def test_bf16_without_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"use engine\.zero_stage=1"):
        build_engine(zero(0, training__precision="bf16"))


def test_pipeline_parallel_is_refused() -> None:
    config = zero(1)
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, pipeline=2))
    with pytest.raises(UserError, match=r"use engine\.name=megatron, or ZeRO"):
        build_engine(config)
