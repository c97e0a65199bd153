"""Export, evaluation and generation from the command line, on a run made by the real engine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from megatron_lst.cli import evaluate, export, generate
from megatron_lst.config.load import dump_yaml
from megatron_lst.errors import UserError
from megatron_lst.evaluation.benchmarks import PreparedTask, write_prepared
from megatron_lst.evaluation.benchmarks.prepared import PreparedItem, Side
from megatron_lst.inference import load_export
from tests.support.toy import toy_config, toy_rows

app = typer.Typer()
app.add_typer(evaluate.eval_app, name="eval")
app.command()(export.export)
app.command()(generate.generate)


def lst(*arguments: object) -> str:
    """The command line in this process."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def lst_process(*arguments: object) -> str:
    """The command line as its own process: engines keep process groups."""
    code = "from tests.cli.test_models import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MAKE_RUN = """
import sys
from pathlib import Path
from megatron_lst.config.load import load_config
from megatron_lst.engines import build_engine
from megatron_lst.training.checkpoint import begin, finish
import numpy as np
from tests.support.toy import toy_rows
run = Path(sys.argv[1])
config = load_config(run / "config.yaml")
engine = build_engine(config)
temporary = begin(run, 3)
files = engine.save(temporary / "engine")
finish(temporary, 3, {"step": 3, "cursors": {}}, (run / "config.yaml").read_text(), files)
np.savez(run / "scores.npz", *engine.score(toy_rows(config, 2)))
engine.close()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose one checkpoint holds initial weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(dump_yaml(toy_config(data__workers=0, data__units=64)))
    done = subprocess.run(
        [sys.executable, "-c", MAKE_RUN, str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    assert "step 3" in lst_process("export", run, folder)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    rng = np.random.default_rng(0)

    def side(n: int) -> Side:
        return Side(rng.integers(3, 60, n).tolist(), 2 * n, rng.integers(0, 50, 3 * n).tolist())

    items = [PreparedItem(f"i{n}", side(3), (side(2), side(2)), n % 2) for n in range(6)]
    items.append(PreparedItem("long", side(100), (side(2), side(2)), 0))
    write_prepared(folder, PreparedTask("storycloze", items))
    return folder


def test_the_exported_model_scores_as_the_engine_did(run: Path, exported: Path) -> None:
    opened = load_export(exported)
    assert opened.metadata["step"] == 3
    config = toy_config(data__units=64)
    with np.load(run / "scores.npz") as file:
        engine_scores = [file[name] for name in file.files]
    for mine, theirs in zip(opened.model(torch.float64).score(toy_rows(config, 2)), engine_scores, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    file = max(copy.rglob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError, match=f"{file.name}: hash differs"):
        lst_process("export", copy, tmp_path / "export")
    assert not (tmp_path / "export").exists()


DELETE = """
import shutil, sys
from pathlib import Path
from megatron_lst.errors import UserError
from megatron_lst.engines.megatron.engine import MegatronEngine
from tests.cli import test_models
real = MegatronEngine.load
def load(self, folder):
    if folder.parent.name == "step-00000003":  # between verification and loading, as a run that trains deletes it
        (folder.parent / "manifest.json").unlink()
        shutil.rmtree(folder.parent)
        Path(sys.argv[2]).joinpath("checkpoints", "newer").rename(folder.parent.with_name("step-00000004"))
    real(self, folder)
MegatronEngine.load = load
try:
    test_models.app()
except UserError as error:
    sys.exit(str(error))
"""


def test_a_checkpoint_that_is_deleted_meanwhile_is_not_half_read(run: Path, tmp_path: Path) -> None:
    for number, asked in enumerate(((), ("--step", "3"))):
        copy = Path(shutil.copytree(run, tmp_path / f"run{number}"))
        newer = Path(shutil.copytree(copy / "checkpoints" / "step-00000003", copy / "checkpoints" / "newer"))
        assert (newer / "manifest.json").is_file()
        out = tmp_path / f"out{number}"
        done = subprocess.run(
            [sys.executable, "-c", DELETE, "export", str(copy), str(out), *asked],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert "step-00000003 was deleted while it was read" in done.stderr
        assert (done.returncode == 0) == (not asked), done.stderr
        assert out.exists() == (not asked)
    assert "; there are 4" in done.stderr
    assert load_export(tmp_path / "out0").metadata["step"] == 4


def test_run_and_export_give_the_same_accuracies(run: Path, exported: Path, task: Path, tmp_path: Path) -> None:
    output = lst("eval", exported, "--task", task, "--out", tmp_path / "a", "--units", 64)
    assert "| storycloze | S->S | 6 (1 refused) | 50.0 |" in output
    assert "59.1, 60.5, 61.2" in output
    lst_process("eval", run, "--task", task, "--out", tmp_path / "b")
    a, b = (json.loads((tmp_path / x / "results.json").read_text()) for x in "ab")
    assert [t["direction"] for t in a["tasks"]] == ["S->S", "T->T", "S->T", "T->S"]
    for one, two in zip(a["tasks"], b["tasks"], strict=True):
        assert set(one["refused"]) == {"long"}
        for x, y in zip(one["scores"], two["scores"], strict=True):
            np.testing.assert_allclose(x["sums"], y["sums"], rtol=1e-4)
    table = lst("eval", "compare", tmp_path / "a", tmp_path / "b")
    assert "| storycloze | S->S | 6 | +0.0 [+0.0, +0.0] | 0 | 0 | 1 |" in table


def test_generates_units_and_sound_with_counted_global_steps(exported: Path, tmp_path: Path) -> None:
    from lst_prep.units import Codebook

    Codebook(np.zeros((50, 39), np.float32), "mfcc", "some fingerprint").save(tmp_path / "c.safetensors")
    output = lst(
        "generate", exported, "--units", "3 17 4", "--to", "speech", "--max-tokens", 21, "--codebook",
        tmp_path / "c.safetensors", "--out", tmp_path / "new" / "x.wav",
    )  # fmt: skip
    assert "21 tokens, 5 global steps, ended by length" in output or "ended by eos" in output
    assert (tmp_path / "new" / "x.wav").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "{x}"), "nothing to evaluate on"),
        (("eval", "{x}/nowhere"), "there is no such folder"),
        (("export", "{x}", "out"), "not a run folder"),
        (("generate", "{x}"), "no prompt"),
        (("generate", "{x}", "--units", "99"), r"has numbers in [0, 50)"),
        (("generate", "{x}", "--text", "hello"), "--text needs --tokenizer"),
        (("generate", "{x}", "--units", "3", "--to", "text", "--out", "a.wav"), "--out is for speech"),
        (("generate", "{x}", "--units", "3", "--to", "speech", "--out", "/tmp"), "name the WAV file in it"),
        (("generate", "{x}", "--units", "3", "--save", "/dev/null/x.txt"), "--save cannot be written to /dev/null"),
        (("eval", "prepare", "nonsense", "a", "b"), "expected one of hellaswag"),
    ],
)
def test_mistakes_are_named(exported: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        lst(*(a.format(x=exported) for a in arguments))
    assert message in str(caught.value)
