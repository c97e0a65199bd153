"""Shipped configurations at full size, any stage of any layout, traced without values: what `lst plan` says is so."""

import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks import stages
from benchmarks.rows import synthetic_rows
from benchmarks.stages import TracedStage, trace_stage
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.parallel.layout import ParallelLayout, check_layout
from megatron_lst.planning import memory
from megatron_lst.planning.traffic import boundary_bytes
from megatron_lst.simulation.rank import traced_rank
from megatron_lst.simulation.trace import dense, trace_schedule
from tests.support.slow import with_slow

ROOT = Path(__file__).resolve().parents[2]
ALONE = ["parallel.tensor=1", "parallel.pipeline=1", "parallel.sequence=false", "training.micro_batch=4"]
PIPED = ["parallel.pipeline=4"]
INTERLEAVED = [*PIPED, "parallel.virtual=2"]
ONE = {
    "1b": ("lst-1b", []),
    "1b, direct": ("lst-1b", ["model.text_path=direct"]),
    "1b, logits kept": ("lst-1b", ["engine.loss_chunk=0"]),
    "1b, selective": ("lst-1b", ["training.recompute=selective"]),
    "1b, full": ("lst-1b", ["training.recompute=full"]),
    "1b, baseline": ("base-1b", []),
    "7b": ("lst-7b", []),
}
CASES = {
    **{f"{name}, alone": (file, 0, [*ALONE, *changes]) for name, (file, changes) in ONE.items()},
    "7b": ("lst-7b", 0, []),
    "7b, no sequence": ("lst-7b", 0, ["parallel.sequence=false"]),
    "7b, wide queries": ("lst-7b", 0, ["model.queries=3"]),
    "7b, interleaved, first": ("lst-7b", 0, INTERLEAVED),
    "7b, interleaved, middle": ("lst-7b", 1, INTERLEAVED),
    "7b, interleaved, last": ("lst-7b", 3, INTERLEAVED),
    "7b, direct, last": ("lst-7b", 3, [*PIPED, "model.text_path=direct"]),
    "7b, own embedding, no sequence, last": (
        "lst-7b", 3, [*PIPED, "parallel.sequence=false", "model.decoder_input=embedding"]
    ),
    "70b, first": ("lst-70b", 0, []),
    "70b, middle": ("lst-70b", 1, []),
    "70b, last": ("lst-70b", 3, []),
    "70b, full, first": ("lst-70b", 0, ["training.recompute=full"]),
    "70b, selective, middle": ("lst-70b", 2, ["training.recompute=selective"]),
    "70b baseline, last": ("base-70b", 3, []),
}  # fmt: skip


def setting(name: str) -> tuple[Config, ParallelLayout, int]:
    """(configuration, layout, stage), two data-parallel ranks. No model is 4000 wide: rows are told from features."""
    file, stage, changes = CASES[name]
    config = load_config(ROOT / "configs" / f"{file}.yaml", ["data.units=4000", *changes])
    data = 1 if changes[:4] == ALONE else 2
    return config, check_layout(config, config.parallel.tensor * config.parallel.pipeline * data), stage


def traced(name: str, **options: Any) -> tuple[Config, ParallelLayout, int, TracedStage]:
    config, layout, stage = setting(name)
    found = trace_stage(config, layout.tensor * layout.pipeline * layout.data, stage, **options)
    return config, layout, stage, found


def check_bytes(config: Config, found: TracedStage) -> None:
    planned, trace = found.planned, found.trace
    for name, size in found.states.items():
        assert size == pytest.approx(getattr(planned, name), rel=1e-3), name
    assert trace.peak == pytest.approx(found.planned_peak, rel=0.03)
    if memory.logits_are_chunked(config, found.work.tokens) and config.model.text_path == "patch":
        assert trace.kept == pytest.approx(planned.activations, rel=0.03)
    assert found.sent == pytest.approx(found.planned_sent, rel=0.01)


@pytest.mark.parametrize(
    ("config", "pipeline", "stage"),
    [("lst-1b", 1, 0), ("base-1b", 1, 0), ("lst-7b", 1, 0), ("lst-1b", 2, 0), ("lst-1b", 2, 1)],
)
def test_weights_are_gathered_in_the_order_in_which_they_are_used(config: str, pipeline: int, stage: int) -> None:
    """Megatron-core gathers the next bucket ahead, and warns where the next to run is not the next that was added."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The next bucket's parameter all-gather")
        settings = load_config(f"configs/{config}.yaml", [f"parallel.pipeline={pipeline}"])
        trace_stage(settings, 16, stage)


@pytest.mark.parametrize(
    "name",
    with_slow(
        CASES,
        "70b, full, first",
        "70b, selective, middle",
        "70b baseline, last",
        "7b, interleaved, middle",
        "7b, interleaved, last",
    ),
)
def test_a_stage_is_as_planned(name: str) -> None:
    config, layout, stage, found = traced(name)  # fails where a value is read
    check_bytes(config, found)
    trace, count = found.trace, found.micro_batches
    assert not dense(trace, {*found.widths, config.engine.loss_chunk})
    kernels = {"packed_attention", "packed_attention_backward", "rms_norm_residual", "swiglu", "put_product"}
    if config.model.kind == "lst" and stage == 0:
        kernels |= {"patch_pool", "patch_pool_backward", "patch_attention", "patch_attention_backward"}
    assert {f"lst_kernels.{kernel}" for kernel in kernels} <= {op.name for op in trace.operations}

    planned = memory.passes(layout.pipeline, layout.virtual, stage, count)
    assert trace.passes == "".join("F" if change > 0 else "B" for change, _ in planned)
    crossing = [c for c in trace.collectives if c.kind in ("send", "receive")]
    assert {c.bytes for c in crossing} <= {boundary_bytes(config, layout)}, "one shape, whatever the rows"
    ends = (stage == 0) + (stage == layout.pipeline - 1)
    for kind in ("send", "receive"):
        expected = count * (2 * layout.virtual - ends) if layout.pipeline > 1 else 0
        assert sum(c.kind == kind for c in crossing) == expected

    among = [c for c in trace.collectives if c.group == "data" and c.bytes > 4]
    if layout.data > 1:
        reduced = sum(c.bytes for c in among if (c.kind, c.phase) == ("reduce-scatter", "backward"))
        gathered = sum(c.bytes for c in among if (c.kind, c.phase) == ("all-gather", "forward"))
        assert (reduced, gathered) == (found.states["gradients"], found.states["weights"]), (
            "under way while it computes"
        )
    assert len(among) == sum(c.kind in ("reduce-scatter", "all-gather") for c in among)


def reduced_activations(found: TracedStage) -> int:
    """All-reduces of activations and their gradients in a micro-batch; the loss exchanges vectors."""
    large = [c for c in found.trace.collectives if c.group == "tensor" and c.phase and c.bytes > 1e6]
    return sum(c.kind == "all-reduce" for c in large) // found.micro_batches


def test_sequence_parallelism_reduces_and_scatters() -> None:
    layers = {}
    for name, expected in {
        "70b, middle": 0,
        "70b, first": 1
        + 3,  # the cross-attention's output; gradients of the inputs of pooling's projection, of q, of k and v
        "70b, last": 1 + 6,  # gradients of the unit projection's input, and of what k and v come from in each layer
    }.items():
        _, _, _, found = traced(name, micro_batches=4)
        assert reduced_activations(found) == expected
        layers[name] = sum(c.kind == "reduce-scatter" for c in found.trace.collectives if c.group == "tensor")
    assert layers["70b, middle"] == 4 * 4 * 20, "two forward and two backward in each of 20 layers, 4 micro-batches"


def test_the_ranks_of_a_stage_are_alike() -> None:
    """On 512 GPUs, ranks of the second stage that differ in their tensor and data coordinates; the next one is not."""
    config = load_config(ROOT / "configs" / "lst-70b.yaml")
    rows = list(islice(synthetic_rows(config, 1500), 1))
    found = []
    for rank in (128, 255, 256):
        with traced_rank(config, 512, rank) as engine:
            trace = trace_schedule(engine, rows)
            state = engine.state
            found.append((state.pipeline_rank, trace.kept, trace.peak, trace.collectives))
            assert (state.tensor_rank, state.data_rank) == (rank % 8, rank // 8 % 16)
    assert found[0] == found[1] != found[2]
    assert found[0][0] == 1


def test_without_sequence_parallelism_more_is_kept() -> None:
    (_, _, _, sharded), (_, _, _, whole) = traced("7b"), traced("7b, no sequence")
    assert whole.trace.kept > 1.15 * sharded.trace.kept
    assert reduced_activations(whole) > reduced_activations(sharded) + 4 * 32


@pytest.mark.parametrize("fault", ["one micro-batch in flight", "chunks alike", "queries sharded"])
def test_a_wrong_plan_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "7b, interleaved, middle"
    if fault == "one micro-batch in flight":
        monkeypatch.setattr(memory, "in_flight", lambda *layout: {(1, 1)})
    elif fault == "chunks alike":
        monkeypatch.setattr(memory, "in_flight", lambda *layout: {(4.5, 4.5)})
    else:
        name, plain = "70b, full, first", memory.cross_activations
        monkeypatch.setattr(
            memory, "cross_activations", lambda *a, sharded, fused: plain(*a, sharded=True, fused=fused)
        )
    config, _, _, found = traced(name)
    with pytest.raises(AssertionError):
        check_bytes(config, found)


def test_a_stage_that_reduces_what_it_should_scatter_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    from megatron_lst.model.layers import Layer

    plain = Layer._gated

    def faulty(self: Any, x: Any) -> Any:
        out = plain(self, x)
        dist.all_reduce(out.detach(), group=self.mlp.linear_fc2.tp_group)
        return out

    monkeypatch.setattr(Layer, "_gated", faulty)
    _, _, _, found = traced("70b, middle", micro_batches=1)
    assert reduced_activations(found) == 20


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "configs" / "base-1b.yaml")
    assert stages.main([path, "--gpus", "4", "--set", "parallel.pipeline=2", "model.layers=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[4:6]] == ["| 0 ", "| 1 "]
    assert "not measured on a GPU" in lines[-1]
    assert stages.main([path, "--gpus", "3", "--set", "parallel.pipeline=2"]) == 2
    assert "cannot work" in capsys.readouterr().err
