"""The demo's stages side by side, and its table from files as the commands write them."""

import json
from pathlib import Path

import pytest

from megatron_lst.cli import demo
from megatron_lst.cli.demo import DemoStage, run_together
from megatron_lst.cli.demo_table import Model, comparison
from megatron_lst.errors import LstError


def stages(tmp_path: Path, *commands: list[str]) -> list[DemoStage]:
    return [DemoStage(f"stage {i}", tmp_path / f"{i}", command) for i, command in enumerate(commands)]


def test_stages_share_the_cores_and_say_who_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("megatron_lst.machine.usable_cores", lambda: 2)
    times = run_together(stages(tmp_path, ["--help"], ["flops", "--help"]))
    assert list(times) == ["stage 0", "stage 1"]
    said = capfd.readouterr().out
    assert "   stage 0:  Usage: " in said
    assert "   stage 1:  Usage: " in said
    monkeypatch.setattr("megatron_lst.machine.usable_cores", lambda: 1)
    run_together(stages(tmp_path, ["--help"], ["--help"]))
    assert "stage 0: " not in capfd.readouterr().out, "one at a time has the terminal"


def test_a_stage_that_fails_is_named_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("megatron_lst.machine.usable_cores", lambda: 2)
    with pytest.raises(LstError, match="the stage 'stage 1' failed with exit code 2") as failed:
        run_together(stages(tmp_path, ["--help"], ["report", str(tmp_path / "no-such-run")]))
    assert failed.value.exit_code == 2
    assert "stage 1: error: " in capfd.readouterr().out


def results(folder: Path, loss: float) -> Path:
    interval = {"mean": 0.625, "low": 0.5, "high": 0.75}
    directions = [("heldout_continuation", "S->S"), ("heldout_same_voice", "S->S"), ("heldout_continuation", "T->T")]
    tasks = [{"task": t, "direction": d, "items": 56, "accuracy": {"mean": interval}} for t, d in directions]
    held = {"speech_loss_speech": loss, "text_loss_text": loss, "speech_bits_per_second": 100 * loss}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"target": "x", "tasks": tasks, "held_out": held, "skipped": {}}))
    return folder


def run(folder: Path, units: list[float], tokens: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"step": i, "units_per_second": u, "raw_tokens": {"speech": tokens * i, "text": i}}
        for i, u in enumerate(units, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_table_has_a_line_for_each_measure_and_says_what_it_means(tmp_path: Path) -> None:
    speed = tmp_path / "speed.json"
    speed.write_text(json.dumps({"lst": {"tokens_per_second": 61.2}, "baseline": {"tokens_per_second": 30.4}}))
    lst, baseline = run(tmp_path / "lst", [1, 1000, 2000], 2000), run(tmp_path / "base", [1100], 500)
    page = comparison(
        [
            Model("LST", results(lst / "eval", 4.0), lst, "lst"),
            Model("baseline", results(baseline / "eval", 3.5), baseline, "baseline"),
            Model("untrained", results(tmp_path / "untrained", 10.0)),
        ],
        speed,
    )
    lines = page.splitlines()
    assert lines[0] == "| | LST | baseline | untrained |"
    assert "| units a second, training | 1,000 | 1,100 | - |" in lines
    assert "| raw tokens seen | 6,003 | 501 | 0 |" in lines
    assert "| speech tokens a second, generation | 61 | 30 | - |" in lines
    assert "| speech, bits a second | 400.0 | 350.0 | 1000.0 |" in lines
    assert "| choice S->S in one voice, % | 62 [50, 75] | 62 [50, 75] | 62 [50, 75] |" in lines
    measures = [line.split("|")[1].strip() for line in lines[2 : lines.index("")]]
    explained = [line.removeprefix("- **").partition("**: ")[0] for line in lines if line.startswith("- **")]
    assert measures == explained


def test_every_stage_is_a_command_of_lst(tmp_path: Path) -> None:
    """Each stage's arguments are known to the command line; nothing runs."""
    import typer

    from megatron_lst.cli.app import app

    top = typer.main.get_command(app)
    checked = 0
    for stage in (stage for together in demo.stages(tmp_path, tmp_path) for stage in together):
        if callable(stage.command):
            continue
        command, arguments = top, list(stage.command)
        while hasattr(command, "commands"):
            name = arguments[0] if arguments[0] in command.commands else "run"
            arguments = arguments[1:] if name == arguments[0] else arguments
            command = command.commands[name]
        command.make_context(stage.title, arguments)
        checked += 1
    assert checked >= 11
