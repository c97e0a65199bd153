"""Conversations from end to end: prepared, trained on for ten steps, exported, and held with the export."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from lst_prep.chat.pipeline import run_chat
from megatron_lst.cli.app import app
from megatron_lst.config.load import dump_yaml, load_config
from megatron_lst.errors import UserError
from megatron_lst.inference import load_export
from megatron_lst.training.metrics import read_metrics
from tests.support.chat import TALK, ChatWorld, span
from tests.training.tiny import MODEL


def lst(*arguments: object, typed: str = "") -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), input=typed)
    if result.exception is not None:
        raise result.exception
    return result.output


def process(*arguments: object) -> str:
    """Engines keep process groups: a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "megatron_lst", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ChatWorld:
    return ChatWorld(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def run(world: ChatWorld) -> Path:
    """A run of ten steps on conversations."""
    ask, answer = {"role": "user", "content": [span(0)]}, {"role": "assistant", "content": [span(1)]}
    talks = [TALK, *({"id": f"t{i}", "messages": [ask, answer] * (1 + i % 3)} for i in range(6))]
    held = {"id": "held", "messages": [{"role": "user", "content": "well"}, {"role": "assistant", "content": "so"}]}
    more = [{"name": "dev", "path": str(world.write("dev", [held])), "split": "heldout"}]
    run_chat(world.config("prepared", world.write("talk", talks), more=more), quiet=True)
    config = world.folder / "run.yaml"
    values = {**MODEL, "base": ["prepared/train.yaml"], "data": {**MODEL["data"], "units": 256}}
    values["training"] = {**MODEL["training"], "steps": 10, "lr": 3e-3}
    values["evaluation"] = {"every": 5, "rows": 2}
    config.write_text(json.dumps({**values, "run": {"dir": str(world.folder / "run")}}))
    assert dump_yaml(load_config(str(config)))
    process("train", config)
    return world.folder / "run"


def test_ten_steps_learn_and_the_held_out_loss_is_measured(run: Path) -> None:
    records = read_metrics(run)
    losses = [record["loss"] for record in records]
    assert len(losses) == 10
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    held = [record for record in records if "heldout" in record or any("dev" in key for key in record)]
    assert held, "the loss of the held-out conversations is in metrics.jsonl"


@pytest.fixture(scope="module")
def exported(run: Path, world: ChatWorld) -> Path:
    process("export", run, world.folder / "export", "--tokenizer", world.tokenizer / "tokenizer.json")
    return world.folder / "export"


def test_a_file_of_turns_is_answered(exported: Path, world: ChatWorld, tmp_path: Path) -> None:
    """In text, by a recording and by codes; answers come as text, sound and JSONL that can be prepared again."""
    form = json.loads((world.folder / "prepared" / "chat.json").read_text())
    assert load_export(exported).metadata["chat"] == form
    soundfile.write(tmp_path / "q.wav", 0.3 * np.sin(np.arange(8_000) * 0.2), 16_000)
    asked = [
        {"id": "a", "messages": [
            {"role": "user", "content": "hello"},
            {"role": "user", "content": [{"type": "text", "text": "hear: "}, {"type": "audio", "path": "q.wav"}]},
        ]},
        {"id": "b", "messages": [{"role": "user", "content": [{"type": "audio", "units": [3, 1, 4]}]}]},
    ]  # fmt: skip
    turns = tmp_path / "turns.jsonl"
    turns.write_text("".join(json.dumps(one) + "\n" for one in asked))
    common = ["generate", exported, "--chat", "--turns", turns, "--max-tokens", 20, "--temperature", 0, "--seed", 1]
    shown = lst(*common, "--to", "speech", "--out", tmp_path / "said.wav", "--save", tmp_path / "said.jsonl",
                "--system", "Be brief.")  # fmt: skip
    assert "[a]" in shown and "[b]" in shown
    held = [int(line.split("tokens, ")[1].split()[0]) for line in shown.splitlines() if "were held" in line]
    assert len(held) == 3 and held[0] == 0 < held[1] and held[2] == 0, "the second turn goes on from the first's caches"
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [m["role"] for m in said[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert all(soundfile.read(path)[0].size for path in tmp_path.glob("said-*.wav"))
    if all(m["content"] for one in said for m in one["messages"]):
        assert [len(one["messages"]) for one in said] == [5, 3]
    text = lst(*common, "--to", "text")
    assert "text: " in text
    assert lst(*common, "--to", "text").split("tokens in")[0] == text.split("tokens in")[0], (
        "the same seed, the same words"
    )


def test_turns_from_the_terminal(exported: Path) -> None:
    typed = "hello\n/to speech\n/units '3 1 4'\n/units '99'\n/sing\n<|im_end|>\n/quit\n"
    shown = lst("generate", exported, "--chat", "--to", "text", "--max-tokens", 8, typed=typed)
    assert shown.count("were held") == 2
    assert "codebook 0 has numbers in [0, 20)" in shown
    assert "/sing: not known" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: "),
        (json.dumps({"messages": []}), "line 1: messages: expected a list"),
        (json.dumps({"messages": [{"role": "assistant", "content": "a"}]}), "leave out the assistant's turns"),
        (json.dumps({"messages": [{"role": "user", "content": [span(0)]}]}), "a span of a shard set"),
    ],
)
def test_turns_that_cannot_be_answered_are_refused(exported: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "turns.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        lst("generate", exported, "--chat", "--turns", tmp_path / "turns.jsonl")


def test_options_that_do_not_go_together_are_refused(exported: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--chat", "--text", "a"], "--chat takes its turns from the terminal or from --turns"),
        (["--system", "a"], "add --chat"),
        (["--chat", "--chat-format", tmp_path / "none.json"], "not readable"),
        (["--chat", "--to", "song"], "expected speech, text or any"),
    ):
        with pytest.raises(UserError, match=message):
            lst("generate", exported, *arguments)
