"""A bf16 run begins with and exports fp32 master weights, not the rounded ones that it multiplies with."""

import functools
from typing import Any

import pytest
import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.model.weights import canonical_shapes, initial_weight
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.toy import toy_config

pytestmark = pytest.mark.multiprocess
TP2_PP2 = {"parallel__tensor": 2, "parallel__pipeline": 2}


def bf16(**changes: Any) -> Config:
    return toy_config(training__precision="bf16", training__lr=1e-6, **changes)


LAYOUTS = {
    "one process": (1, bf16()),
    "DP2 distributed optimizer": (2, bf16(engine__distributed_optimizer=True)),
    "TP2 PP2": (4, bf16(**TP2_PP2)),
    "ZeRO 1 DP2": (2, bf16(engine__name="deepspeed", engine__zero_stage=1)),
    "ZeRO 3 DP2": (2, bf16(engine__name="deepspeed", engine__zero_stage=3)),
}
MORE_LAYOUTS = LAYOUTS | {
    "DP2 plain optimizer": (2, bf16(engine__distributed_optimizer=False)),
    "TP2 DP2 sequence parallel": (4, bf16(parallel__tensor=2, parallel__sequence=True)),
    "PP2 DP2": (4, bf16(parallel__pipeline=2)),
    "PP2 interleaved": (2, bf16(parallel__pipeline=2, parallel__virtual=2)),
    "ZeRO 2 TP2": (2, bf16(engine__name="deepspeed", engine__zero_stage=2, parallel__tensor=2)),
}


def _weights_at_the_start(config: Config, loaded: dict[str, torch.Tensor] | None = None) -> Any:
    """What the engine exports before its first step, and whether its own weights are these, rounded."""
    engine = build_engine(config)
    try:
        if loaded is not None:
            engine.load_weights(loaded)
        states = (engine._tensors if hasattr(engine, "_tensors") else engine._zero).gather()
        rounded = [torch.equal(s["model"], s["master"].to(s["model"].dtype)) for s in states.values()]
        return engine.export_weights(), all(rounded)
    finally:
        engine.close()


@pytest.mark.parametrize("layout", MORE_LAYOUTS)
def test_masters_are_the_fp32_values_as_drawn_or_loaded(ranks: RankPool, layout: str) -> None:
    world, config = MORE_LAYOUTS[layout]
    if config.engine.name == "deepspeed":
        pytest.importorskip("deepspeed")
    shapes = canonical_shapes(config)
    drawn = {name: initial_weight(name, shape, config) for name, shape in shapes.items()}
    other = {name: weight + 0.3 for name, weight in drawn.items()}
    for given, expected in ((None, drawn), (other, other)):
        found = ranks.run(functools.partial(_weights_at_the_start, loaded=given), world, config)
        assert all(rounded for _, rounded in found)
        weights = found[0][0]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    kept = sum(int((weight.bfloat16().float() == weight).sum()) for weight in drawn.values() if weight.dim() > 1)
    assert kept < 0.05 * sum(weight.numel() for weight in drawn.values()), "control: bf16 holds few of them"


@pytest.mark.parametrize(("world", "config"), LAYOUTS.values(), ids=LAYOUTS)
def test_what_bf16_cannot_hold_is_exported(ranks: RankPool, world: int, config: Config) -> None:
    """Updates of 1e-6 are far below what bf16 resolves at 0.02, and not below fp32's."""
    if config.engine.name == "deepspeed":
        pytest.importorskip("deepspeed")
    found = ranks.run(train, world, config, 3)[0]["weights"]
    name = "global_transformer.layers.0.mlp.down_proj.weight"
    start = initial_weight(name, tuple(found[name].shape), config)
    moved = (found[name] - start).abs()
    assert found[name].dtype == torch.float32
    assert 0 < moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.9
    rounded = (found[name].bfloat16().float() - start.bfloat16().float()).abs()
    assert (rounded > 0).float().mean() < 0.25, "control: rounded to bf16 most of the weights have not moved"
