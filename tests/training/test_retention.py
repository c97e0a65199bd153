"""Only what a run wrote itself is ever removed; copies, notes, kept and best checkpoints stay."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.errors import UserError
from megatron_lst.training.checkpoint import Checkpoint, complete_checkpoints, folders
from megatron_lst.training.checkpoint.retention import best_checkpoint, keep, release, retain


def write(run: Path, step: int, heldout_loss: float | None = None) -> Checkpoint:
    temporary = folders.begin(run, step)
    (temporary / "engine" / "model.bin").write_bytes(b"weights")
    files = {
        f.name: {"bytes": f.stat().st_size, "xxh3_64": folders.hash_file(f)} for f in (temporary / "engine").iterdir()
    }
    position = {"step": step, "cursors": {}, "heldout_loss": heldout_loss}
    return folders.finish(temporary, step, position, "a: 1\n", files)


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}


def numbers(run: Path) -> list[int]:
    return [c.step for c in complete_checkpoints(run)]


def test_the_newest_stay_and_each_removal_is_told(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step)
    told: list[str] = []
    removed = retain(tmp_path, keep=2, tell=told.append)
    assert [c.step for c in removed] == [10, 20]
    assert numbers(tmp_path) == [30, 40]
    assert told == [f"step-000000{step} removed: checkpoint.keep=2" for step in (10, 20)]
    assert retain(tmp_path, keep=0) == []


COPIES = [
    "step-00000010-best",
    "step-00000010.bak",
    "step-00000010_before_lr_change",
    "step-00000010 (copy)",
    "step-00000010.tmp2",
    "step-00000010.tmp.old",
    "step-10",
    "step-000000010",  # nine digits that need only two
    "step-00000010.kept-1",
    "best",
    "old-step-00000010",
    "STEP-00000010",
    "step-",
    "step-best",
]


def test_whatever_else_lies_there_stays(tmp_path: Path) -> None:
    write(tmp_path, 10)
    root = tmp_path / "checkpoints"
    for name in COPIES:
        shutil.copytree(root / "step-00000010", root / name)
    (root / "step-00000010.json").write_text("notes")
    for step in (20, 30):
        write(tmp_path, step)
    retain(tmp_path, keep=1)
    assert names(tmp_path) == {*COPIES, "step-00000030"}  # the control: the run's own 10 and 20 are gone
    assert (root / "step-00000010.json").exists()
    assert numbers(tmp_path) == [30]


def test_a_copy_under_a_checkpoints_name_is_not_the_runs(tmp_path: Path) -> None:
    """Brought from another run, or copied to another number: the run has no record of having written it."""
    write(tmp_path, 20)
    root = tmp_path / "checkpoints"
    shutil.copytree(root / "step-00000020", root / "step-00000005")
    (root / "step-00000007").mkdir()  # a person's folder, without a manifest
    for step in (30, 40):
        write(tmp_path, step)
    retain(tmp_path, keep=1)
    assert names(tmp_path) == {"step-00000005", "step-00000007", "step-00000040"}


def test_the_record_of_a_run_of_an_earlier_version_is_what_its_manifests_say(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    root = tmp_path / "checkpoints"
    shutil.copytree(root / "step-00000030", root / "step-00000015")  # its manifest says 30
    (root / "written.json").unlink()
    write(tmp_path, 40)
    retain(tmp_path, keep=1)
    assert names(tmp_path) == {"step-00000015", "step-00000040"}


def test_a_record_that_cannot_be_read_removes_nothing(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoints" / "written.json").write_bytes(b"\xff{")
    write(tmp_path, 30)
    assert retain(tmp_path, keep=1) == []


def test_leftovers_of_unfinished_saves_go_but_not_a_save_under_way(tmp_path: Path) -> None:
    folders.begin(tmp_path, 5)
    write(tmp_path, 10)
    under_way = folders.begin(tmp_path, 15)
    told: list[str] = []
    retain(tmp_path, keep=3, tell=told.append)
    assert names(tmp_path) == {"step-00000010", under_way.name}
    assert told == ["step-00000005.tmp removed: an unfinished save"]


def test_a_removal_that_was_interrupted_leaves_nothing_that_looks_complete(tmp_path: Path, monkeypatch) -> None:
    for step in (10, 20):
        write(tmp_path, step)

    def killed(path: Path) -> None:
        (path / "engine" / "model.bin").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            retain(tmp_path, keep=1)
    assert numbers(tmp_path) == [20]
    retain(tmp_path, keep=1)
    assert names(tmp_path) == {"step-00000020"}


def test_a_removal_that_fails_is_told_and_costs_nothing_else(tmp_path: Path, monkeypatch) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    told: list[str] = []

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert retain(tmp_path, keep=2, tell=told.append) == []
    assert numbers(tmp_path) == [20, 30]
    assert "could not be removed" in told[0]


def test_kept_for_good(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path, step)
    keep(tmp_path, 10)
    write(tmp_path, 30)
    retain(tmp_path, keep=1)
    assert numbers(tmp_path) == [10, 30]
    assert folders.find_checkpoint(tmp_path, 10).damaged_files() == []
    write(tmp_path, 10)  # the same step once more: the kept one gives way, it is not overwritten
    assert "step-00000010.kept-1" in names(tmp_path)
    keep(tmp_path, 10)
    release(tmp_path, 10)
    retain(tmp_path, keep=1)
    assert names(tmp_path) == {"step-00000010.kept-1", "step-00000030"}
    with pytest.raises(UserError, match="no complete checkpoint of step 10; there are 30"):
        keep(tmp_path, 10)


def test_kept_in_the_moment_of_its_removal(tmp_path: Path, monkeypatch) -> None:
    for step in (10, 20):
        write(tmp_path, step)
    rename = Path.rename

    def kept_first(self: Path, target: Path) -> Path:
        if self.name == "step-00000010" and not (self / "KEEP").exists():
            (self / "KEEP").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", kept_first)
    assert retain(tmp_path, keep=1) == []
    assert numbers(tmp_path) == [10, 20]


def test_the_best_stays_if_asked(tmp_path: Path) -> None:
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.7), (40, None), (50, 1.9)):
        write(tmp_path, step, loss)
    assert best_checkpoint(tmp_path) == folders.find_checkpoint(tmp_path, 20)
    assert [c.step for c in retain(tmp_path, keep=1, keep_best=True)] == [10, 30, 40]
    write(tmp_path, 60, 1.4)
    assert [c.step for c in retain(tmp_path, keep=1, keep_best=True)] == [20, 50]
    assert [c.step for c in retain(tmp_path, keep=1)] == []
    shutil.rmtree(tmp_path / "checkpoints")
    for step, loss in ((10, 1.0), (20, 1.5)):
        write(tmp_path, step, loss)
    assert [c.step for c in retain(tmp_path, keep=1)] == [10], "the control: not asked"


def test_on_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, 10, 1.25)
    (tmp_path / "config.yaml").write_text("")

    def lst(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["checkpoint", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert "step-00000010: kept" in lst("keep", str(tmp_path), "10")
    assert "held-out loss 1.2500, the least  kept" in lst("list", str(tmp_path))
    assert "no longer kept" in lst("keep", str(tmp_path), "10", "--undo")
    assert "kept" not in lst("list", str(tmp_path))
    with pytest.raises(UserError, match="no complete checkpoint of step 11"):
        lst("keep", str(tmp_path), "11")
