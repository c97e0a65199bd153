"""Planned memory against a real model on one rank, and against arithmetic for layouts that need many."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.config import load_config
from megatron_lst.config.load import build, merge
from megatron_lst.config.schema import Config, EngineConfig, TrainingConfig
from megatron_lst.flops import module_parameters, parameters
from megatron_lst.flops.work import Work
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import PipelineSplit, pipeline_split
from megatron_lst.planning.memory import (
    decoder_activations,
    encoder_activations,
    global_shape,
    in_flight,
    layer_activations,
    logit_bytes,
    passes,
    stage_memory,
    stage_parameters,
    state_bytes,
)

ROOT = Path(__file__).resolve().parents[2]
ALONE = ParallelLayout(1, 1, 1, 1, False)
TINY: dict[str, Any] = {
    "vocabulary": {"text_size": 200, "speech_size": 20},
    "model": {
        "hidden": 64, "layers": 3, "heads": 4, "local_hidden": 32, "local_heads": 2, "decoder_layers": 3, "window": 32,
    },
    "data": {"units": 128},
    "training": {"precision": "fp32", "global_batch": 2, "micro_batch": 2},
    "engine": {"overlap": False},
}  # fmt: skip


def measure(values: dict[str, Any]) -> dict[str, int]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in (".", "kernels", "data_prep"))}
    program = [sys.executable, str(Path(__file__).with_name("measure_activations.py")), json.dumps(values)]
    answer = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="none", marks=pytest.mark.slow),
        pytest.param({"model": {"kv_heads": 2}, "training": {"recompute": "selective"}}, id="selective_gqa"),
    ],
)
def test_planned_activations_are_near_what_the_model_keeps(changes: dict[str, Any]) -> None:
    values = merge(TINY, changes)
    config = build(Config, values)
    measured = measure(values)
    units = config.training.micro_batch * config.data.units
    recompute = config.training.recompute
    trunk = config.model.layers * layer_activations(global_shape(config, False), units, 4, ALONE, recompute)
    assert trunk == pytest.approx(measured["global"], rel=0.1)
    tokens = float(measured["tokens"])
    work = Work(tokens=tokens, encoder_tokens=tokens, patches=units, decoder_tokens=tokens)
    local = encoder_activations(config, ALONE, work, 4, False) + decoder_activations(
        config, ALONE, units, work, 4, False
    )
    logits = measured["tokens"] * config.vocabulary.padded_size * 4
    assert trunk + local + logits == pytest.approx(measured["all"], rel=0.1)
    assert measured["parameters"] == parameters(config) == stage_parameters(config, ALONE, split_of(config))[0]


def split_of(config: Config, layout: ParallelLayout = ALONE) -> PipelineSplit:
    return pipeline_split(config, layout.pipeline, layout.virtual)


def test_stages_hold_every_parameter_and_the_replica() -> None:
    config = load_config(ROOT / "configs" / "lst-1b.yaml")
    layout = ParallelLayout(2, 4, 1, 8, True)
    stages = stage_parameters(config, layout, split_of(config, layout))
    d = config.model.local_hidden
    replica = module_parameters(config)["embedding"] + 4 * d * d + 3 * d * config.model.local_ffn_size + 2 * d
    assert sum(stages) * layout.tensor == pytest.approx(parameters(config) + replica)
    own = replace(config, model=replace(config.model, decoder_input="embedding"))
    stages = stage_parameters(own, layout, split_of(own, layout))
    assert sum(stages) * layout.tensor == pytest.approx(parameters(own)), "no replica without encoder states"


def test_bytes_of_states() -> None:
    config = Config()
    four = replace(ALONE, data=4)
    assert state_bytes(config, four, 100) == (200, 400, 300)
    assert state_bytes(replace(config, engine=EngineConfig(distributed_optimizer=False)), four, 100) == (200, 400, 1200)
    fp32 = replace(config, training=TrainingConfig(precision="fp32"))
    assert state_bytes(fp32, four, 100) == (400, 400, 200)
    for stage, expected in ((0, (200, 400, 1200)), (1, (200, 400, 300)), (2, (200, 100, 300)), (3, (50, 100, 300))):
        zero = replace(config, engine=EngineConfig(name="deepspeed", zero_stage=stage))
        assert state_bytes(zero, four, 100) == expected
    offload = replace(config, engine=EngineConfig(name="deepspeed", zero_stage=2, offload_optimizer=True))
    assert state_bytes(offload, four, 100) == (200, 100, 0)


def test_fp8_keeps_the_global_matrices_twice_more() -> None:
    config = load_config(ROOT / "configs" / "lst-1b.yaml")
    layout = ParallelLayout(2, 2, 1, 8, True)
    split = split_of(config, layout)
    fp8 = replace(config, engine=replace(config.engine, fp8="hybrid"))
    plain, with_copies = (stage_memory(c, layout, split) for c in (config, fp8))
    added = [b.weights - a.weights for a, b in zip(plain, with_copies, strict=True)]
    assert sum(added) * layout.tensor == pytest.approx(2 * module_parameters(config)["global"])
    assert [replace(b, weights=a.weights) for a, b in zip(plain, with_copies, strict=True)] == plain


def test_micro_batches_in_flight() -> None:
    assert [in_flight(4, 1, stage, 8) for stage in range(4)] == [{(4,)}, {(3,)}, {(2,)}, {(1,)}]
    assert [in_flight(4, 1, stage, 2) for stage in range(4)] == [{(2,)}, {(2,)}, {(2,)}, {(1,)}]
    assert in_flight(1, 1, 0, 8) == {(1,)}
    # Interleaved: as many as were ahead, and one; more of the first chunk than of the last.
    assert {sum(counts) for counts in in_flight(4, 2, 0, 8)} == {3 * 2 + 4 + 1}
    assert in_flight(4, 2, 3, 8) == {(5, 0), (4, 1)}
    assert in_flight(4, 2, 1, 16) == in_flight(4, 2, 1, 160), "it repeats itself"


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (4, 1), (4, 2), (2, 3)])
def test_every_pass_has_its_way_back(pipeline: int, virtual: int) -> None:
    for stage in range(pipeline):
        done = passes(pipeline, virtual, stage, 8)
        for chunk in range(virtual):
            mine = [change for change, of in done if of == chunk]
            assert mine.count(1) == mine.count(-1) == 8
            assert min(sum(mine[: i + 1]) for i in range(len(mine))) == 0, "nothing goes back before it came"


def test_both_heads_have_logits() -> None:
    config = load_config(ROOT / "configs" / "lst-1b.yaml", ["model.text_path=direct"])
    chunk, vocabulary = config.engine.loss_chunk, config.vocabulary.padded_size
    spoken, written = 3 * chunk, chunk // 2
    found = logit_bytes(config, Work(tokens=4 * chunk, decoder_tokens=spoken, text_positions=written), 2)
    assert found == vocabulary * (chunk * 6 + written * 6)


def test_memory_falls_where_it_should() -> None:
    config = load_config(ROOT / "configs" / "lst-7b.yaml")

    def most(layout: ParallelLayout, **training: Any) -> float:
        changed = replace(config, training=replace(config.training, **training))
        return max(m.total for m in stage_memory(changed, layout, split_of(changed, layout)))

    base = most(ParallelLayout(1, 1, 1, 8, False))
    assert most(ParallelLayout(2, 1, 1, 4, True)) < base
    assert most(ParallelLayout(1, 2, 1, 4, False)) < base
    assert most(ParallelLayout(1, 1, 1, 16, False)) < base
    none, selective, full = (
        most(ParallelLayout(1, 1, 1, 8, False), recompute=r) for r in ("none", "selective", "full")
    )
    assert none > selective > full
    assert most(ParallelLayout(1, 1, 1, 8, False), micro_batch=1) < base
