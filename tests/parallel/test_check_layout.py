"""Impossible layouts are refused before any process group is made, with the nearest ones that work."""

import re
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_lst.config import load_config
from megatron_lst.errors import UserError
from megatron_lst.parallel.layout import ParallelLayout, check_layout, problems
from megatron_lst.parallel.split import pipeline_split
from tests.support.toy import toy_config

CONFIGS = Path(__file__).parents[2] / "configs"


def refusal(world: int, **changes: object) -> str:
    with pytest.raises(UserError) as refused:
        check_layout(toy_config(**changes), world)
    assert not dist.is_initialized()
    return str(refused.value)


def test_a_layout_that_works() -> None:
    layout = check_layout(toy_config(parallel__tensor=2, parallel__pipeline=2), 8)
    assert layout == ParallelLayout(tensor=2, pipeline=2, virtual=1, data=2, sequence=False)


def test_world_size() -> None:
    said = refusal(3, parallel__tensor=2)
    assert "3 ranks are not a multiple" in said
    assert "Layouts that work on 3 ranks: tensor=1, pipeline=3 (data=1)" in said
    assert "No layout of 5 ranks works" in refusal(5, parallel__tensor=2)
    assert "torchrun" not in said
    assert "torchrun --nproc-per-node 4 -m megatron_lst" in refusal(1, parallel__tensor=2, parallel__pipeline=2)


def test_heads() -> None:
    said = refusal(3, parallel__tensor=3, training__global_batch=12)
    assert "model.heads=4 is not divisible by parallel.tensor=3" in said
    assert "tensor=1, pipeline=3 (data=1)" in said


def test_sides_of_fp8_products() -> None:
    fp8 = {"engine__fp8": "hybrid", "training__precision": "bf16", "model__ffn": 128}
    assert check_layout(toy_config(**fp8), 1).tensor == 1
    said = refusal(4, **fp8, parallel__tensor=4)
    assert "model.hidden = 64 over 4 ranks must give each rank a multiple of 32 for mxfp8 (16 with" in said
    assert "model.ffn" not in said
    check_layout(toy_config(**fp8, parallel__tensor=4, engine__fp8_recipe="tensorwise"), 4)
    said = refusal(1, **fp8, engine__fp8_recipe="tensorwise", data__units=12)
    assert "training.micro_batch * data.units = 24 must give each rank a multiple of 16 for tensorwise." in said
    said = refusal(2, **fp8, parallel__tensor=2, parallel__sequence=True, data__units=16)
    assert "training.micro_batch * data.units = 32 over 2 ranks" in said
    check_layout(toy_config(**fp8, parallel__tensor=2, data__units=16), 2)
    assert "the projection to queries, keys and values = 80 must" in refusal(
        1, **(fp8 | {"model__heads": 8, "model__kv_heads": 1, "model__hidden": 64})
    )


@pytest.mark.parametrize("name", ["lst-420m", "lst-1b", "base-1b", "lst-1.8b", "lst-7b", "lst-70b"])
def test_shipped_models_have_sides_for_every_recipe(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", ["engine.fp8=hybrid"])
    parallel = config.parallel
    ranks = parallel.tensor * parallel.pipeline
    layout = ParallelLayout(parallel.tensor, parallel.pipeline, parallel.virtual, 1, parallel.sequence)
    assert not [problem for problem in problems(config, layout, ranks) if "fp8" in problem]


def test_more_stages_than_layers() -> None:
    said = refusal(4, model__layers=2, parallel__pipeline=4)
    assert "4 pipeline stages for model.layers=2" in said
    assert "tensor=2, pipeline=2 (data=1)" in said


def test_global_batch() -> None:
    said = refusal(4, training__global_batch=6, training__micro_batch=3)
    assert "not divisible by training.micro_batch * data-parallel ranks = 3 * 4" in said
    assert "tensor=2, pipeline=1 (data=2)" in said


def test_sequence_parallel_and_interleaving() -> None:
    assert "at least 2" in refusal(1, parallel__sequence=True)
    said = refusal(2, parallel__pipeline=2, parallel__virtual=2, training__global_batch=6)
    assert "multiple of parallel.pipeline=2" in said


def test_split() -> None:
    assert "parallel.split=[1, 2] must give 2 stages" in refusal(2, parallel__pipeline=2, parallel__split=(1, 2))


def test_every_layout_that_is_offered_works() -> None:
    for world in (2, 4, 8):
        offered = refusal(world, parallel__tensor=3).split("Layouts that work")[1]
        found = re.findall(r"tensor=(\d+), pipeline=(\d+) \(data=(\d+)\)", offered)
        assert found
        for tensor, pipeline, data in found:
            layout = check_layout(toy_config(parallel__tensor=int(tensor), parallel__pipeline=int(pipeline)), world)
            assert layout.data == int(data)


def test_split_is_computed_so_that_the_ends_weigh_in() -> None:
    """The last stage has decoder and head: it gets fewer layers, and the predicted imbalance says what is left."""
    split = pipeline_split(toy_config(model__layers=13, model__decoder_layers=6), 4)
    assert sum(split.layers) == 13
    assert split.layers[-1] < max(split.layers)
    equal = pipeline_split(toy_config(model__layers=12, parallel__split=(3, 3, 3, 3)), 4)
    assert equal.layers == (3, 3, 3, 3)
    best = pipeline_split(toy_config(model__layers=12), 4)
    assert best.imbalance <= equal.imbalance


def test_split_of_interleaved_stages() -> None:
    split = pipeline_split(toy_config(model__layers=9), 2, 2)
    assert sum(split.layers) == 9
    assert len(split.layers) == 4
    assert len(split.loads) == 2
    assert [split.first_layer(c) for c in range(4)] == [sum(split.layers[:c]) for c in range(4)]
