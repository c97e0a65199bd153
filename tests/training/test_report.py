"""The page of a run: one that goes on, its table of curves, several runs, and a folder that is none."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.errors import UserError
from megatron_lst.training.report import write_report
from megatron_lst.training.report.curves import curves, histories, smooth
from megatron_lst.training.resilience import outcome
from tests.support.reported import IMAGE, SCRIPT, run_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("reported"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(made: Path) -> None:
    page = write_report([made]).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Curves", "Evaluation", "Samples", "Held-out speech and its patches", "A row", "Configuration and data",
        "Checkpoints", "Events",
    ]  # fmt: skip
    for what in (
        "The run goes on, or was killed without a word: step 30 of 40.",
        "heldout_continuation",
        "60.0 [50.0, 70.0]",
        "no sound: broken.wav cannot be read",
        "No complete checkpoint yet.",
        "checkpoint_failed",
        "hidden: 32",
        'class="k-speech"',
    ):
        assert what in page, what
    # A sample, and a held-out document that the codebook makes sound of, cut in the two ways of a curriculum.
    assert page.count('src="data:audio/ogg;base64,') == 2
    assert [
        page.count(f">{name}</div>") for name in ("aligned patches: words and pauses", "static patches: 4 tokens")
    ] == [1, 1]
    assert len(re.findall(r'<button type="button" class="word"', page)) > 5
    assert SCRIPT not in page
    assert IMAGE not in page
    assert "&lt;script&gt;alert" in page


def test_held_out_points_lie_in_the_chart_of_their_loss(made: Path) -> None:
    (block,) = curves(histories([made]))
    charts = {chart.title: chart for chart in block.charts}
    assert list(charts) == [
        "Loss", "Loss on speech tokens", "Loss on text pieces", "Held-out choice", "Gradient norm", "Learning rate",
        "Speed",
    ]  # fmt: skip
    (line, dots) = charts["Loss on speech tokens"].series
    assert (line.name, dots.name) == ("run", "run, held out: speech")
    assert [x for x, _ in dots.points] == [2560, 5120, 7680]  # units seen, 256 a step
    assert [round(y, 3) for _, y in dots.points] == [round(5 / step**0.5 + 1.1, 3) for step in (10, 20, 30)]
    assert [round(y, 2) for _, y in charts["Held-out choice"].series[0].points] == [0.6, 0.7, 0.8]
    assert len(charts["Loss on text pieces"].series) == 1


def test_how_a_run_ended_is_said(run: Path) -> None:
    outcome.failed(run, UserError(f"disk {SCRIPT}"), rank=3, step=30)
    page = write_report([run]).read_text()
    assert "The run failed in step 30: UserError: disk &lt;script&gt;" in page
    (run / outcome.NAME).unlink()
    outcome.finished(run, 40)
    assert "Not complete" not in write_report([run]).read_text()


def test_what_a_run_lacks_is_said_and_the_rest_is_shown(run: Path) -> None:
    for name in ("samples", "eval"):
        shutil.rmtree(run / name)
    for name in ("metrics.jsonl", "events.log"):
        (run / name).unlink()
    (run / "config.yaml").write_text("model: {hidden: many}\n")
    page = write_report([run]).read_text()
    for what in (
        "The configuration cannot be read: ",
        "No step is finished",
        "No samples yet",
        "No results yet",
        "No event yet.",
        "model: {hidden: many}",
    ):
        assert what in page, what


def test_shards_that_are_not_here_cost_the_picture_alone(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"/\S*sets/", str(run / "nowhere") + "/", text))
    page = write_report([run]).read_text()
    assert "No picture of a row: " in page
    assert "nowhere" in page
    assert page.count("<svg") >= 7


def test_the_command_draws_several_runs(made: Path, run: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(run), str(made)], catch_exceptions=False)
    assert answer.exit_code == 0
    assert answer.output.splitlines()[-1] == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert f"beside {made}" in page
    assert f'<li><i class="c1"></i>{made}</li>' in page  # both are called `run`: the legend names their folders
    assert not (made / "plots").exists()


def test_a_folder_that_is_no_run_is_refused(made: Path, tmp_path: Path) -> None:
    for runs in ([tmp_path], [made, tmp_path]):
        with pytest.raises(UserError, match=rf"{tmp_path}: not a run folder \(no config.yaml\)"):
            write_report(runs)


def test_smoothing_carries_gaps_over() -> None:
    assert smooth([1.0, None, 3.0, 5.0], 2) == [1.0, 1.0, 2.0, 4.0]
