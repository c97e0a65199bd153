"""`--json`: stdout is one JSON document, and whatever else is said goes to stderr; no colour where NO_COLOR is set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.documents.writing import write_set
from megatron_lst.inference import write_export
from megatron_lst.training.trainer import train
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TOKENIZER
from tests.support.toy import initial_weights, toy_config
from tests.training.tiny import write_run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with its checkpoint, an export, shards."""
    from megatron_lst.config import load_config

    folder = tmp_path_factory.mktemp("json")
    train(load_config(write_run(folder, training={"steps": 1}, checkpoint={"every": 1})))
    config = toy_config(patching__size=4)
    metadata = {"tokenizer": {"fingerprint": "tok", "name": "toy"}, "codebook": {"fingerprint": "code"}}
    write_export(folder / "export", initial_weights(config), config, metadata)
    write_set(folder / "some", SPEECH_DOCUMENTS[:4], "speech", TOKENIZER, CODEBOOK)
    return folder


def answer(world: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> Any:
    monkeypatch.chdir(world)
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code or result.exception is not None, result.output
    return json.loads(result.stdout)


def test_checkpoints(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = answer(world, monkeypatch, "checkpoint", "list", "run")["checkpoints"]
    assert [(found["step"], found["kept"]) for found in listed] == [(1, False)]
    assert listed[0]["bytes"] > 1000
    assert answer(world, monkeypatch, "checkpoint", "keep", "run", 1)["kept"] is True
    assert answer(world, monkeypatch, "checkpoint", "verify", "run")["checkpoints"][0]["damaged"] == []


def test_damage_is_an_answer_too(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "run", tmp_path / "run")
    largest = max((tmp_path / "run" / "checkpoints").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    with largest.open("r+b") as file:
        file.write(b"\xff" * 64)
    found = answer(tmp_path, monkeypatch, "checkpoint", "verify", "run", code=3)
    assert len(found["checkpoints"][0]["damaged"]) == 1


def test_report(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(world, monkeypatch, "report", "run")
    assert found["runs"][0]["steps"] == 1
    assert (world / found["page"]).is_file()


def test_generate_says_the_length_of_what_it_wrote(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = " ".join("3" * 50)
    command = ("generate", "export", "--units", prompt, "--to", "speech", "--max-tokens", 25, "--out", "said.npy")
    found = answer(world, monkeypatch, *command)
    said = found["responses"][0]
    frames = len(np.load(world / said["file"]))
    assert said["file_seconds"] == frames / 25
    assert said["seconds"] == len(said["codes"]) / 25
    assert frames == 50 + len(said["codes"])
    assert found["timing"]["tokens"] == said["tokens"]


def test_eval(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("eval", "export", "--documents", "some", "--units", 128, "--prompt-words", 2, "--continuation-words", 2)
    found = answer(world, monkeypatch, *command, "--items", 4, "--direction", "S->S")
    assert found["held_out"]["speech_bits_per_second"] > 0
    assert {task["direction"] for task in found["tasks"]} == {"S->S"}
    assert (world / found["file"]).is_file()
    same = answer(world, monkeypatch, "eval", "compare", "export/eval", "export/eval")
    assert same["tasks"][0]["difference"]["mean"] == 0


def test_nothing_stands_on_stdout_where_there_is_no_answer(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    result = CliRunner().invoke(app, ["eval", "nowhere", "--json"])
    assert result.exception is not None
    assert result.stdout == ""


def program(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "megatron_lst", *arguments], capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    return done.stdout + done.stderr


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


def test_no_colour_is_no_colour() -> None:
    arguments = ("--help",), ("plan", "configs/lst-1b.yaml", "--top", "1")
    forced = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm-256color"}
    for given in arguments:
        assert not COLOUR.search(program(*given, NO_COLOR="1", **forced)), given
    assert COLOUR.search(program("--help", **forced))  # the control


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there(shell: str) -> None:
    assert "_LST_COMPLETE" in program("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    asked = {
        "bash": {"COMP_WORDS": "lst che", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "lst che"},
        "fish": {"_TYPER_COMPLETE_ARGS": "lst che", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    said = program(_LST_COMPLETE=f"complete_{shell}", **asked)
    assert "checkpoint" in said
