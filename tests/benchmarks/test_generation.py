"""The generation benchmark measures both models in both forms, and measures nothing where one says something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import generation
from benchmarks.step import TINY
from megatron_lst.inference.fixed import FixedDecoder
from tests.benchmarks.test_step import TINY_VOCABULARY

OPTIONS = ["--batch", "2", "--prompt", "5", "--tokens", "9", "--set", *TINY_VOCABULARY, *TINY]


def test_measures_both_forms_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generation.main([*OPTIONS, "--out", str(tmp_path)]) == 0
    assert "ragged decoding" in capsys.readouterr().out
    found = json.loads(next(tmp_path.glob("generation-lst-1b-*.json")).read_text())
    assert [run["decoding"] for run in found["runs"]] == ["fixed", "ragged"]
    for run in found["runs"]:
        assert run["lst"]["tokens"] == 18
        assert run["lst"]["global_steps"] == run["baseline"]["global_steps"] / 4 == 2
    assert found["machine"]["versions"]["torch"] == torch.__version__


def test_a_wrong_form_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FixedDecoder, "encode", lambda self: None)
    assert generation.main([*OPTIONS, "--out", str(tmp_path)]) == 1
    assert "fixed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_size_that_fails_costs_no_other_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = generation.measure

    def measure(*arguments: Any, fixed_shapes: bool) -> Any:
        if fixed_shapes:
            raise torch.OutOfMemoryError("out of memory")
        return plain(*arguments, fixed_shapes=fixed_shapes)

    assert generation.main([*OPTIONS, "--out", str(tmp_path)], measure) == 1
    assert "out of memory" in capsys.readouterr().err
    found = json.loads(next(tmp_path.glob("generation-lst-1b-*.json")).read_text())
    assert [run["decoding"] for run in found["runs"]] == ["ragged"]


def test_two_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    assert generation.main(["configs/lst-1b.yaml"]) == 2
    assert "an LST and its baseline" in capsys.readouterr().err


def test_nothing_to_measure_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*OPTIONS, "--out", str(tmp_path)]
    for option in ("--batch", "--tokens"):
        wrong = [*given[: given.index(option) + 1], "0", *given[given.index(option) + 2 :]]
        assert generation.main(wrong) == 2
        assert "at least one prompt and two tokens" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
