"""Engines on a GPU: the oracle's losses in fp32 and bf16, the same bits twice and after a resume, whole runs."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.training.trainer import train
from tests.model.test_parity import OPTIONS, config_with, oracle_log_probabilities, oracle_with
from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows
from tests.training.tiny import curve as curve_of
from tests.training.tiny import write_run

pytestmark = pytest.mark.gpu

KINDS = ("default", "text_path=direct", "grouped queries, QK-norm", "W_u=512, cross_rope", "baseline")
PRECISIONS = ("fp32", "bf16")


def wide(precision: str, **changes: Any) -> Config:
    """Widths for which the kernels have tuned tiles."""
    sizes: dict[str, Any] = {
        "hidden": 256,
        "heads": 2,
        "ffn": 384,
        "local_hidden": 128,
        "local_heads": 2,
        "local_ffn": 192,
    }
    return toy_config(
        **{f"model__{name}": size for name, size in sizes.items()},
        data__units=256, training__precision=precision, **changes,
    )  # fmt: skip


def curve(engine: Any, first: int, last: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of some steps; each has its own rows."""
    results = [engine.step(toy_rows(engine.config, 8, seed=step), lr=1e-2) for step in range(first, last)]
    return [(result.loss, result.grad_norm) for result in results]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KINDS)
def test_scores_loss_and_gradient_norm_are_the_oracles(name: str, precision: str) -> None:
    config = config_with(OPTIONS[name], training__precision=precision)
    rows = toy_rows(config, config.training.global_batch)
    exact = precision == "fp32"
    with engine_of(config) as engine:
        assert engine.device.type == "cuda"
        oracle = oracle_with(engine, config).double()
        expected = torch.cat([oracle_log_probabilities(oracle, row) for row in rows])
        scores = np.concatenate([score[row.labels >= 0] for score, row in zip(engine.score(rows), rows, strict=True)])
        difference = np.abs(scores - expected.detach().numpy())
        assert difference.max() < 1e-4 if exact else difference.mean() < 3e-2
        loss = -expected.mean()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in oracle.parameters() if p.grad is not None]).norm().item()
        result = engine.step(rows, lr=1e-3)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5 if exact else 5e-3)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4 if exact else 3e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("text_path", ["patch", "direct"])
def test_the_same_bits_twice(precision: str, text_path: str) -> None:
    found = []
    for _ in range(2):
        with engine_of(wide(precision, model__text_path=text_path)) as engine:
            found.append((curve(engine, 0, 4), engine.export_weights()))
    (first, weights), (second, others) = found
    assert first == second
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert len(set(first)) == len(first), "every step does something"


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    tmp_path: Path, precision: str, asynchronous: bool, distributed: bool
) -> None:
    config = wide(precision, engine__distributed_optimizer=distributed)
    with engine_of(config) as engine:
        curve(engine, 0, 3)
        engine.save(tmp_path, asynchronous=asynchronous)
        rest = curve(engine, 3, 6)
        if asynchronous:
            complete = engine.seal_save()
            assert complete is not None
            complete()
        weights = engine.export_weights()
    with engine_of(config) as engine:
        engine.load(tmp_path)
        assert curve(engine, 3, 6) == rest
        again = engine.export_weights()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_recomputation_changes_no_bit(recompute: Any) -> None:
    with engine_of(wide("bf16")) as engine:
        expected = curve(engine, 0, 2)
    with engine_of(wide("bf16", training__recompute=recompute)) as engine:
        assert curve(engine, 0, 2) == expected


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_deepspeed_has_the_same_curve(stage: int, offload: bool) -> None:
    pytest.importorskip("deepspeed")
    with engine_of(wide("fp32")) as engine:
        expected = curve(engine, 0, 3)
    config = wide("fp32", engine__name="deepspeed", engine__zero_stage=stage, engine__offload_optimizer=offload)
    with engine_of(config) as engine:
        assert engine.device.type == "cuda"
        found = curve(engine, 0, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.skipif(find_spec("streaming") is None, reason="needs mosaicml-streaming")
def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Loader, trainer, metrics and checkpoints on the device; without its last checkpoint the run repeats its end."""
    config = load_config(write_run(tmp_path, training={"steps": 8, "precision": "bf16"}))
    assert train(config).step == 8
    first = curve_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000008")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert train(config).step == 8
    assert curve_of(tmp_path / "run") == {step: first[step] for step in (5, 6, 7, 8)}


def test_weights_cross_between_host_and_device_unchanged() -> None:
    with engine_of(wide("bf16")) as engine:
        weights = engine.export_weights()
        curve(engine, 0, 1)
        engine.load_weights(weights)
        again = engine.export_weights()
    assert all(w.device.type == "cpu" and w.dtype == torch.float32 for w in again.values())
    assert all(torch.equal(weights[name], again[name]) for name in weights)
