"""The job engine: nothing twice, nothing lost, whoever dies."""

import errno
import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lst_prep.config import PrepConfig
from lst_prep.engine import lock, run_stage
from lst_prep.items import Receipts, Stage, Work, slice_items
from lst_prep.jobs import Jobs, StageResources
from lst_prep.parts import _put
from lst_prep.unread import JobFault
from megatron_lst.cli.app import app
from megatron_lst.config.load import build, parse_overrides
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes

pytestmark = pytest.mark.multiprocess


def factory(folder: str, behaviour: str) -> Work:
    """Writes one file an item; some items misbehave, by name."""
    log = Path(folder, "log")

    def work(item: int) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{item}\n")
        first = log.read_text().split().count(str(item)) == 1
        if behaviour == "die once" and item == 3 and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "die always" and item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "disk full" and item == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
        if behaviour == "bug" and item == 3:
            raise KeyError("oops")
        path = Path(folder, f"{item}.txt")
        write_bytes(path, b"x" * item)
        return {"files": {str(path): item}, "square": item * item}

    return work


def go(folder: Path, behaviour: str = "", workers: int = 2, part: str | None = None, plan: str = "p") -> list[Any]:
    stage = Stage("toy", 6, factory, (str(folder), behaviour))
    run_stage(stage, folder / "work", plan, Jobs(workers=workers, attempts=2), part=part, quiet=True)
    receipts = Receipts(folder / "work", "toy", plan)
    return [receipts.read(item) for item in range(stage.items)]


def done(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rerun_does_only_what_is_missing(tmp_path: Path, workers: int) -> None:
    assert [r["square"] for r in go(tmp_path, workers=workers)] == [0, 1, 4, 9, 16, 25]
    (tmp_path / "4.txt").unlink()
    (tmp_path / "5.txt").write_text("short")
    Receipts(tmp_path / "work", "toy", "p")._path(2).write_text("{")
    go(tmp_path, workers=1)
    assert sorted(done(tmp_path)) == sorted([*"012345", "4", "2"])
    assert done(tmp_path)[6:] == ["2", "4"]


def test_a_truncated_output_is_made_again(tmp_path: Path) -> None:
    go(tmp_path, workers=1)
    (tmp_path / "5.txt").write_text("xx")
    go(tmp_path, workers=1)
    assert done(tmp_path)[6:] == ["5"]
    assert (tmp_path / "5.txt").read_text() == "xxxxx"


def test_another_plan_does_everything_again(tmp_path: Path) -> None:
    go(tmp_path, workers=1)
    go(tmp_path, workers=1, plan="q")
    assert len(done(tmp_path)) == 12


def test_a_killed_worker_is_replaced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert [r["square"] for r in go(tmp_path, "die once")] == [0, 1, 4, 9, 16, 25]
    assert done(tmp_path).count("3") == 2
    assert "worker of item 3 died" in capfd.readouterr().err


def test_an_item_that_kills_every_worker_is_named_and_the_rest_is_done(tmp_path: Path) -> None:
    with pytest.raises(JobFault, match=r"items \[3\]"):
        go(tmp_path, "die always")
    assert set(done(tmp_path)) == set("012345")
    results = go(tmp_path, workers=1)
    assert None not in results


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_the_users_to_mend_and_nothing_done_is_lost(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match="no space left"):
        go(tmp_path, "disk full", workers)
    before = len(done(tmp_path))
    results = go(tmp_path, workers=workers)
    assert None not in results
    assert len(done(tmp_path)) < before + 6


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)stage toy, item 3.*KeyError: 'oops'"):
        go(tmp_path, "bug")


def test_slices_together_do_everything_once(tmp_path: Path) -> None:
    assert go(tmp_path, workers=1, part="0/2").count(None) == 3
    assert None not in go(tmp_path, workers=1, part="1/2")
    assert sorted(done(tmp_path)) == list("012345")
    assert sorted([*slice_items(10, "0/3"), *slice_items(10, "1/3"), *slice_items(10, "2/3")]) == list(range(10))
    for wrong in ("3", "3/3", "a/b", "-1/2"):
        with pytest.raises(UserError, match="--items"):
            slice_items(10, wrong)


def test_two_runs_on_one_folder_are_refused(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock"):
        with pytest.raises(UserError, match=f"pid {os.getpid()}"), lock(tmp_path / ".lock"):
            pass
        with pytest.raises(UserError, match="another preparation"), lock(tmp_path / ".lock", shared=True):
            pass
    with lock(tmp_path / ".lock"):
        pass
    with lock(tmp_path / ".lock", shared=True), lock(tmp_path / ".lock", shared=True):
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(UserError, match="cannot be locked .*flock"), lock(tmp_path / ".lock"):
        pass


def test_resources_of_a_stage_can_be_given_on_the_command_line() -> None:
    given = ["jobs.engine=ray", "jobs.resources.units.num_gpus=0.25", "jobs.resources.align.num_cpus=2"]
    jobs = build(PrepConfig, parse_overrides(given, PrepConfig)).jobs
    assert jobs.resources == {"units": StageResources(num_gpus=0.25), "align": StageResources(num_cpus=2)}
    for wrong, why in (("jobs.resources.unit.num_gpus=1", "'unit' is no stage"), ("jobs.engine=dask", "local, ray")):
        with pytest.raises(UserError, match=why):
            build(PrepConfig, parse_overrides([wrong], PrepConfig))


def test_a_failed_item_is_told_until_it_is_done(tmp_path: Path) -> None:
    with pytest.raises(JobFault, match="lst prep failed"):
        go(tmp_path, "die always")
    told = CliRunner().invoke(app, ["prep", "failed", str(tmp_path)]).output
    assert told.startswith("toy, item 3:\n  attempt 1: the worker died, killed by signal 9 (process ")
    go(tmp_path)
    assert CliRunner().invoke(app, ["prep", "failed", str(tmp_path)]).output == ""


def test_a_part_that_two_workers_write_at_once_is_whole(tmp_path: Path) -> None:
    made = [tmp_path / f"{name}.tmp" for name in "abcd"]
    for folder in made:
        folder.mkdir()
        for name in range(50):
            (folder / str(name)).write_text("same")
    threads = [threading.Thread(target=_put, args=(folder, tmp_path / "part")) for folder in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part"]
    assert len(list((tmp_path / "part").iterdir())) == 50
