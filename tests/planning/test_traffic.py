"""What the wires carry, by arithmetic; test_stages holds it against the real model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.config import load_config
from megatron_lst.config.schema import Config
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.planning import find_device, step_time
from megatron_lst.planning.rates import NETWORK
from megatron_lst.planning.speed import Assumptions
from megatron_lst.planning.traffic import boundary_bytes, tensor_traffic

BASE = load_config(Path(__file__).resolve().parents[2] / "configs" / "base-70b.yaml")


def sent(config: Config, layout: ParallelLayout) -> list[float]:
    return tensor_traffic(config, layout, pipeline_split(config, layout.pipeline, layout.virtual))


def test_layers_send_as_many_gathers_as_megatron_makes() -> None:
    """A middle stage has global layers alone."""
    tensor = 8
    gather = BASE.data.units * BASE.model.hidden * 2 * (tensor - 1) / tensor
    layers = pipeline_split(BASE, 4).layers[1]
    for sequence, recompute, each in (
        (True, "none", 10), (False, "none", 8), (True, "selective", 12), (False, "full", 12)
    ):  # fmt: skip
        config = replace(BASE, training=replace(BASE.training, recompute=recompute))
        found = sent(config, ParallelLayout(tensor, 4, 1, 1, sequence))[1]
        assert found == pytest.approx(layers * each * gather)
    assert sent(BASE, ParallelLayout(1, 4, 1, 1, False)) == [0.0] * 4


def test_a_boundary_is_a_shard_under_sequence_parallelism() -> None:
    whole = BASE.data.units * BASE.model.hidden * 2
    assert boundary_bytes(BASE, ParallelLayout(8, 4, 1, 1, False)) == whole
    assert boundary_bytes(BASE, ParallelLayout(8, 4, 1, 1, True)) == whole / 8


def test_time_of_the_wires() -> None:
    device = find_device("h100")
    assert device is not None

    def time(layout: ParallelLayout, config: Config = BASE, **assumed: Any) -> Any:
        split = pipeline_split(config, layout.pipeline, layout.virtual)
        return step_time(config, layout, split, device, Assumptions(per_node=8, **assumed))

    four, interleaved = ParallelLayout(8, 4, 1, 2, True), ParallelLayout(8, 4, 2, 2, True)
    assert time(four).tensor > time(replace(four, sequence=False)).tensor > 0
    crossings = 2 * BASE.training.global_batch / 2 * boundary_bytes(BASE, four)
    slower = time(four, network=5e9).bubble - time(four, network=50e9).bubble
    assert slower == pytest.approx((crossings / 5e9 - crossings / 50e9) / NETWORK), "1F1B waits for what it sends"
    assert time(interleaved, network=5e9).bubble == time(interleaved).bubble, "an interleaved schedule does not"
    whole = replace(BASE, engine=replace(BASE.engine, distributed_optimizer=False))
    assert time(four, whole, hidden=0.0).data == pytest.approx(time(four, hidden=0.0).data * 8 / 6)
