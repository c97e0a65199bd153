"""The step benchmark runs without data and without a GPU, refuses wrong models, and its rows are the mixture."""

import argparse
import dataclasses
import json
import sys
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import first_light, step
from benchmarks.rows import synthetic_rows
from megatron_lst.cli.app import app
from tests.support.toy import toy_config

TINY_VOCABULARY = ["vocabulary.text_size=60", "vocabulary.speech_size=50", "vocabulary.multiple=128"]
OPTIONS = ["--steps", "2", "--micro-batch", "2", "--document-tokens", "50", "--set", *TINY_VOCABULARY, *step.TINY]


@pytest.mark.parametrize("kind", ["lst", "baseline"])
def test_rows_are_sound_full_and_mixed_as_published(kind: str) -> None:
    config = toy_config(model__kind=kind, data__units=1024)
    rows = list(islice(synthetic_rows(config, 600), 24))
    vocabulary, lengths = config.vocabulary, []
    interleaved = text = 0
    for row in rows:
        row.check(vocabulary)
        assert row.units == 1024
        assert (row.tokens != vocabulary.pad).all()
        for document in range(row.document[-1] + 1):
            tokens = row.tokens[row.document == document]
            lengths.append(len(tokens))
            spoken = vocabulary.is_speech(tokens).any()
            interleaved, text = interleaved + spoken * len(tokens), text + (not spoken) * len(tokens)
    assert max(lengths) <= 602, "a rest begins with BOS and its marker again"
    assert text / interleaved == pytest.approx(2.0, rel=0.15)
    again = next(synthetic_rows(config, 600))
    assert again.hash == rows[0].hash != next(synthetic_rows(config, 600, seed=1)).hash


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    """On a GPU exit code 0 says too that the step neither synced nor compiled."""
    assert step.main(["configs/lst-1b.yaml", *OPTIONS, "model.text_path=direct", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "units/s" in said
    assert "documents of 50 raw tokens" in said
    found = json.loads(next(tmp_path.glob("step-lst-1b-*.json")).read_text())
    assert found["units_per_second"] == pytest.approx(2 * 64 / found["seconds"]["median"])
    assert found["document_tokens"] == 50
    assert found["faults"] == []
    assert found["machine"]["versions"]["torch"] == version("torch")
    assert found["oracle_difference"]["fp32"] < 1e-4
    if device == "cpu":
        assert found["mfu"] is found["busy"] is None
        assert found["tiny"]
    else:
        assert 0 < found["busy"] < 1.02
    spent = found["modules"]
    for module in ("decoder.head", "text_head", "encoder", "decoder.layers.*.block"):
        assert spent[module]["forward"] > 0, module
        assert spent[module]["backward"] > 0, module
    assert spent["optimizer"]["forward"] > 0


def test_refuses_to_time_a_wrong_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control of the gate: where the oracle disagrees nothing is timed."""
    right = step.oracle_scores
    monkeypatch.setattr(step, "oracle_scores", lambda oracle, row: right(oracle, row) + 0.01)
    assert step.main(["configs/base-1b.yaml", *OPTIONS, "--out", str(tmp_path)]) == 1
    assert "nothing is timed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["one configuration", "the profile"])
def test_what_fails_costs_no_other_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def run(path: str, arguments: Any) -> bool:
        if stage == "one configuration" and "base-1b" in path:
            fail()
        return step.run(path, arguments)

    if stage == "the profile":
        monkeypatch.setattr(torch.profiler.profile, "__enter__", fail)
    configs = ["configs/base-1b.yaml", "configs/lst-1b.yaml"]
    assert step.main([*configs, *OPTIONS, "--out", str(tmp_path)], run) == (stage != "the profile")
    assert "out of memory" in capsys.readouterr().err
    written = sorted(file.name.split("-cpu")[0] for file in tmp_path.iterdir())
    assert written == (["step-base-1b", "step-lst-1b"] if stage == "the profile" else ["step-lst-1b"])


def test_says_what_a_step_must_not_do() -> None:
    clean = {"host_syncs_per_micro_batch": {}, "compiled_while_timed": {"triton": 0, "torch.compile": 0}}
    assert step.faults(clean) == []
    assert "model.py:7" in step.faults({**clean, "host_syncs_per_micro_batch": {"model.py:7": 1}})[0]
    assert "triton" in step.faults({**clean, "compiled_while_timed": {"triton": 1}})[0]


def test_what_is_expected_stands_beside_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The roofline's own figure for a step on the device that was measured; none where it knows no such step."""
    path, small = "configs/lst-1b.yaml", [*step.TINY, *TINY_VOCABULARY, "training.precision=bf16"]
    arguments = argparse.Namespace(set=small, micro_batch=2, accumulate=1, document_tokens=50)
    config = step.prepare(path, small, 2, 1)
    found = step.expected(path, config, arguments, "NVIDIA H100 80GB HBM3")
    assert found is not None, capsys.readouterr().err
    assert found["units_per_second"] == pytest.approx(2 * 64 / found["seconds"])
    assert found["seconds"] == pytest.approx(sum(found["by_kind"].values()) + found["between_kernels"])
    assert 0 < found["least_seconds"] < found["seconds"]
    written = {"config": path, "overrides": [], "tiny": False, "mfu": None, "busy": None, "peak_memory_gib": 1.0,
               "units_per_second": 1.0, "seconds": {"median": 1.0}, "host_syncs_per_step": {}, "faults": [],
               "modules": {}, "expected": found}  # fmt: skip
    assert f"{found['units_per_second']:,.0f}" in "\n".join(first_light._steps([written]))
    fp8 = dataclasses.replace(config, engine=dataclasses.replace(config.engine, fp8="hybrid"))
    assert step.expected(path, config, arguments, "abacus") is step.expected(path, fp8, arguments, "h100") is None
    monkeypatch.setattr(sys, "executable", "false")  # an estimate that fails costs nothing else
    assert step.expected(path, config, arguments, "h100") is None
    assert "no estimate" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp8_reaches_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fp8 = ["engine.fp8=hybrid", "training.precision=bf16"]
    assert step.main(["configs/lst-1b.yaml", *OPTIONS, *fp8, "--out", str(tmp_path)]) == 2
    assert "engine.fp8=hybrid: Transformer Engine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--device", "cuda"]) == 2
    assert "nothing was measured" in capsys.readouterr().err
    answer = CliRunner().invoke(app, ["kernels", "bench", "--out", str(tmp_path)])
    assert answer.exit_code != 0
    assert "nothing was measured" in str(answer.exception)
    assert not list(tmp_path.iterdir())
