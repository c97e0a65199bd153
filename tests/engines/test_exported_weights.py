"""A bf16 run begins with and exports fp32 master weights, not the rounded ones that it multiplies with."""

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.engines.sharded_checkpoint import MASTER
from megatron_lst.initialisation import Initialiser
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.toy import initial_weights, toy_config

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
    "baseline TP2 PP2": (4, bf16(model__kind="baseline", **TP2_PP2)),
    "text_path=direct PP2": (2, bf16(model__text_path="direct", parallel__pipeline=2)),
    "a group of keys on two ranks": (4, bf16(model__kv_heads=2, model__qk_norm=True, parallel__tensor=4)),
}


class AtTheStart(NamedTuple):
    """One rank before the first step."""

    weights: dict[str, torch.Tensor] | None
    rounded: bool
    """Whether its bf16 weights are the fp32 masters, rounded."""
    drawn: int
    """Values that this rank drew."""
    matrices: int
    """Values in the matrices that it holds."""


def _states(engine: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(weight, fp32 master) of each parameter that this rank has a part of the model for, whole on every rank."""
    zero = getattr(engine, "_zero", None)
    tensors = zero or engine._tensors
    tensors.begin()
    group = engine.state.data_group
    for chunk in [engine._chunk] if zero else engine.chunks:
        for parameter in chunk.parameters():
            for rank in range(dist.get_world_size(group)):  # collective: all ask for each rank in turn
                master = tensors.fetch(parameter, MASTER, rank)
                if master is not None:
                    mine = master.clone()
            with zero.whole([parameter]) if zero else nullcontext():
                yield parameter.detach().clone(), mine


def _at_the_start(config: Config, loaded: dict[str, torch.Tensor] | None = None, keyed_by_rank: bool = False) -> Any:
    engine = build_engine(config, fresh=loaded is None)
    try:
        if loaded is not None:
            engine.load_weights(loaded)
        if keyed_by_rank:
            engine.initialiser = Initialiser(config.model, config.training.seed + dist.get_rank())
            engine.init_weights()
        states = list(_states(engine))
        rounded = [torch.equal(weight, master.to(weight.dtype)) for weight, master in states]
        matrices = sum(master.numel() for _, master in states if master.dim() > 1)
        return AtTheStart(engine.export_weights(), all(rounded), engine.initialiser.drawn, matrices)
    finally:
        engine.close()


@pytest.mark.parametrize("layout", MORE_LAYOUTS)
def test_masters_are_the_fp32_values_as_drawn_or_loaded(ranks: RankPool, layout: str) -> None:
    world, config = MORE_LAYOUTS[layout]
    if config.engine.name == "deepspeed":
        pytest.importorskip("deepspeed")
    drawn = initial_weights(config)
    other = {name: weight + 0.3 for name, weight in drawn.items()}
    for given, expected in ((None, drawn), (other, other)):
        found = ranks.run(functools.partial(_at_the_start, loaded=given), world, config)
        assert all(rank.rounded for rank in found)
        for rank in found:
            assert rank.drawn == (rank.matrices if given is None else 0), "its own part alone, and none before a load"
        weights = found[0].weights
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    kept = sum(int((weight.bfloat16().float() == weight).sum()) for weight in drawn.values() if weight.dim() > 1)
    assert kept < 0.05 * sum(weight.numel() for weight in drawn.values()), "control: bf16 holds few of them"


def test_weights_that_depend_on_the_rank_are_noticed(ranks: RankPool) -> None:
    """Negative control of the test above."""
    world, config = LAYOUTS["TP2 PP2"]
    found = ranks.run(functools.partial(_at_the_start, keyed_by_rank=True), world, config)[0].weights
    expected = initial_weights(config)
    wrong = {name for name in expected if not torch.equal(found[name], expected[name])}
    assert wrong == {name for name, weight in expected.items() if weight.dim() > 1}


@pytest.mark.parametrize(("world", "config"), LAYOUTS.values(), ids=LAYOUTS)
def test_what_bf16_cannot_hold_is_exported(ranks: RankPool, world: int, config: Config) -> None:
    """Updates of 1e-6 are far below what bf16 resolves at 0.02, and not below fp32's."""
    if config.engine.name == "deepspeed":
        pytest.importorskip("deepspeed")
    found = ranks.run(train, world, config, 3)[0]["weights"]
    name = "global_transformer.layers.0.mlp.down_proj.weight"
    start = initial_weights(config)[name]
    moved = (found[name] - start).abs()
    assert found[name].dtype == torch.float32
    assert 0 < moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.9
    rounded = (found[name].bfloat16().float() - start.bfloat16().float()).abs()
    assert (rounded > 0).float().mean() < 0.25, "control: rounded to bf16 most of the weights have not moved"
