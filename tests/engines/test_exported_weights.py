"""A bf16 run exports its fp32 master weights, not the rounded ones that it multiplies with."""

from typing import Any

import pytest
import torch

from megatron_lst.config.schema import Config
from megatron_lst.model.weights import initial_weight
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.toy import toy_config

pytestmark = pytest.mark.multiprocess
TP2_PP2 = {"parallel__tensor": 2, "parallel__pipeline": 2}


def bf16(**changes: Any) -> Config:
    return toy_config(training__precision="bf16", training__lr=1e-6, **changes)


@pytest.mark.parametrize(
    ("world", "config"),
    [
        (1, bf16()),
        (2, bf16(engine__distributed_optimizer=True)),
        (4, bf16(**TP2_PP2)),
        (2, bf16(engine__name="deepspeed", engine__zero_stage=1)),
        (2, bf16(engine__name="deepspeed", engine__zero_stage=3)),
    ],
    ids=["one process", "DP2 distributed optimizer", "TP2 PP2", "ZeRO 1 DP2", "ZeRO 3 DP2"],
)
def test_what_bf16_cannot_hold_is_exported(ranks: RankPool, world: int, config: Config) -> None:
    """Updates of 1e-6 are far below what bf16 resolves at 0.02, and not below fp32's."""
    if config.engine.name == "deepspeed":
        pytest.importorskip("deepspeed")
        ranks.restart()
    found = ranks.run(train, world, config, 3)[0]["weights"]
    name = "global_transformer.layers.0.mlp.down_proj.weight"
    start = initial_weight(name, tuple(found[name].shape), config).bfloat16().float()
    moved = (found[name] - start).abs()
    assert found[name].dtype == torch.float32
    assert 0 < moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.9
    rounded = (found[name].bfloat16().float() - start.bfloat16().float()).abs()
    assert (rounded > 0).float().mean() < 0.1, "control: rounded to bf16 most of the weights have not moved"
