"""Micro-batches of shipped configurations, at full size, without values: what they may not do and what they keep."""

from itertools import islice
from typing import Any

import pytest
import torch

from benchmarks.rows import synthetic_rows
from benchmarks.trace import Operation, Trace, trace_micro_batch, traced_batch, traced_model
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.flops.work import expected_work
from megatron_lst.parallel.layout import check_layout
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.planning import memory

CASES = {
    "1b": ("lst-1b", []),
    "1b, direct": ("lst-1b", ["model.text_path=direct"]),
    "1b, logits kept": ("lst-1b", ["engine.loss_chunk=0"]),
    "1b, selective": ("lst-1b", ["training.recompute=selective"]),
    "1b, full": ("lst-1b", ["training.recompute=full"]),
    "1b, baseline": ("base-1b", []),
    "7b": ("lst-7b", ["parallel.tensor=1", "parallel.pipeline=1", "parallel.sequence=false"]),
}


def setting(name: str) -> Config:
    """A shipped configuration on one GPU, 4 rows at once. No model is 4000 wide: rows are told from features."""
    file, changes = CASES[name]
    return load_config(f"configs/{file}.yaml", ["training.micro_batch=4", "data.units=4000", *changes])


def batch_of(config: Config) -> Any:
    return traced_batch(list(islice(synthetic_rows(config, 1500), config.training.micro_batch)), config)


def dense(trace: Trace, chunk: Any, config: Config) -> list[Operation]:
    """Operations whose output has two axes that are no feature: both run over tokens, units or keys."""
    features = {size for p in chunk.parameters() for size in p.shape} | {config.engine.loss_chunk}
    return [
        op for op in trace.operations for shape in op.outputs if sum(s >= 1000 and s not in features for s in shape) > 1
    ]


@pytest.mark.parametrize("name", CASES)
def test_reads_no_value_makes_no_dense_mask_and_keeps_what_the_plan_says(name: str) -> None:
    config = setting(name)
    batch = batch_of(config)
    with traced_model(config) as chunk:
        trace = trace_micro_batch(chunk, batch)  # fails where a value is read
        assert not dense(trace, chunk, config)
    kernels = {"interval_attention", "interval_attention_backward", "rotary"}
    if config.model.kind == "lst":
        kernels |= {"patch_pool", "patch_pool_backward", "patch_attention", "patch_attention_backward"}
    assert {f"lst_kernels.{name}" for name in kernels} <= {op.name for op in trace.operations}

    layout = check_layout(config, 1)
    usual = config.training.micro_batch * expected_work(config).tokens
    with pytest.MonkeyPatch.context() as exact:  # the plan leaves room for rows with more tokens than usual
        exact.setattr(memory, "TOKEN_SPREAD", len(batch.labels) / usual)
        (planned,) = memory.stage_memory(config, layout, pipeline_split(config, 1, 1))
    activations = planned.activations
    if config.training.recompute == "full":  # one layer lives again, but in the backward pass
        activations -= memory.layer_activations(memory.global_shape(config), 16000, 2.0, layout)
    if config.engine.loss_chunk:
        assert trace.kept == pytest.approx(activations, rel=0.03)
        assert trace.peak_forward - trace.kept == pytest.approx(planned.logits, rel=0.15)
    else:
        assert trace.peak == pytest.approx(activations + planned.logits, rel=0.05)


@pytest.mark.parametrize("fault", ["a value", "a shape from data", "a tensor of the host"])
def test_what_reads_a_value_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(x: torch.Tensor) -> torch.Tensor:
        if fault == "a value":
            assert float(x.detach().sum()) > 0
        elif fault == "a shape from data":
            return x[x[:, 0, 0] > 0]
        return x + torch.ones(x.shape[-1], device="cpu")

    config = setting("1b")
    with traced_model(config) as chunk:
        plain = chunk.decoder.norm.forward
        monkeypatch.setattr(chunk.decoder.norm, "forward", lambda x: plain(faulty(x)))
        with pytest.raises((RuntimeError, AssertionError)):
            trace_micro_batch(chunk, batch_of(config))


def test_a_dense_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = setting("1b")
    with traced_model(config) as chunk:
        plain = chunk.decoder.norm.forward

        def faulty(x: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device)
            return plain(x * mask[:, :1, None])

        monkeypatch.setattr(chunk.decoder.norm, "forward", faulty)
        (found,) = dense(trace_micro_batch(chunk, batch_of(config)), chunk, config)
    assert found.name == "aten.ones"
