"""The step waits for no file system, and nothing of what it gives to the run folder is lost."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.engines import build_engine
from megatron_lst.errors import TrainingFault
from megatron_lst.training import trainer
from megatron_lst.training.background import BackgroundWriter
from megatron_lst.training.checkpoint import complete_checkpoints
from megatron_lst.training.metrics import read_metrics
from megatron_lst.training.resilience.events import read_events


class FileSystem:
    """Sees who opens, lists, makes and renames what lies in a folder, and may let them wait."""

    _OPERATIONS = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree")
    current: "FileSystem | None" = None
    _hooked = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.answers = str(folder), threading.Event()
        self.answers.set()
        self.by_main: list[tuple[str, str]] = []
        self.waiting = 0

    def __enter__(self) -> "FileSystem":
        if not FileSystem._hooked:
            sys.addaudithook(FileSystem._hook)
            FileSystem._hooked = True
        FileSystem.current = self
        return self

    def __exit__(self, *error: object) -> None:
        FileSystem.current = None
        self.answers.set()

    @staticmethod
    def _hook(event: str, arguments: Any) -> None:
        self = FileSystem.current
        if self is None or event not in self._OPERATIONS or not str(arguments[0]).startswith(self.folder):
            return
        if threading.current_thread() is threading.main_thread():
            self.by_main.append((event, str(arguments[0])))
        elif not self.answers.is_set():
            self.waiting += 1
            assert self.answers.wait(60)


def step_by_step(before: Any) -> Any:
    """Builds an engine; `before(step)` is called as step number `step` begins."""

    def build(config: Any, **options: Any) -> Any:
        engine: Any = build_engine(config, **options)
        plain, count = engine.step, iter(range(1, 1000))

        def step(*arguments: Any, **options: Any) -> Any:
            before(next(count))
            return plain(*arguments, **options)

        engine.step = step
        return engine

    return build


@pytest.mark.parametrize("old_way", [False, True])
def test_a_step_waits_for_no_file_system(tiny, monkeypatch: pytest.MonkeyPatch, old_way: bool) -> None:
    """From step 2 to 6, with a checkpoint due at 3, nothing in the run folder answers: the steps go on and do not touch
    it. What writes in the step does (the control; it is not made to wait)."""
    if old_way:
        monkeypatch.setattr(BackgroundWriter, "put", lambda self, action: action())
    config = tiny(training__steps=9, checkpoint__every=3)
    run = Path(config.run.dir)
    seen: dict[int, int] = {}
    lines: dict[int, int] = {}

    with FileSystem(run) as disk:

        def before(step: int) -> None:
            seen[step] = len(disk.by_main)
            lines[step] = len(read_metrics_elsewhere(run))
            if step == 2:
                disk.answers.clear()
            if step == 6:
                disk.answers.set()

        assert trainer.train(config, step_by_step(before)).step == 9
    assert disk.waiting > 0
    touched = seen[6] - seen[2]
    if old_way:
        assert touched >= 4
        assert lines[6] == 5
        return
    assert touched == 0
    assert lines[6] <= 2, "the lines waited, and the steps did not"
    assert [r["step"] for r in read_metrics(run)] == list(range(1, 10))
    assert [c.step for c in complete_checkpoints(run)][-1] == 9
    assert "step-00000003 is complete" in " ".join(e.message for e in read_events(run / "events.log"))


def read_metrics_elsewhere(run: Path) -> list[str]:
    """Without Python's audit."""
    return os.popen(f"cat {run / 'metrics.jsonl'} 2>/dev/null").read().splitlines()


def test_nothing_is_lost_on_a_signal_or_an_error(tiny) -> None:
    """Lines and events wait as the run is told to stop, and as a step fails; both are there in the end."""

    class Broken(Exception):
        pass

    for name, error in (("stopped", False), ("failed", True)):
        config = tiny(name, training__steps=8, checkpoint__every=8)
        run = Path(config.run.dir)
        with FileSystem(run) as disk:

            def before(step: int, error: bool = error, disk: FileSystem = disk) -> None:
                if step == 2:
                    disk.answers.clear()
                if step == 5:
                    threading.Timer(0.3, disk.answers.set).start()
                    if error:
                        raise Broken
                    os.kill(os.getpid(), signal.SIGTERM)

            if error:
                with pytest.raises(Broken):
                    trainer.train(config, step_by_step(before))
            else:
                assert trainer.train(config, step_by_step(before)) == trainer.Outcome(5, signal.SIGTERM)
        assert [r["step"] for r in read_metrics(run)] == list(range(1, 5 + (not error)))
        if not error:
            assert read_events(run / "events.log")[-1].message == "saved after SIGTERM"


def test_an_error_is_raised_by_the_next_call() -> None:
    writer, done = BackgroundWriter(), []

    def fail() -> None:
        raise TrainingFault("taken over")

    writer.put(lambda: done.append(1))
    writer.put(fail)
    writer.put(lambda: done.append(2))
    with pytest.raises(TrainingFault, match="taken over"):
        writer.flush()
    with pytest.raises(TrainingFault, match="taken over"):
        writer.put(lambda: done.append(3))
    writer.close()
    assert done == [1]


def test_an_orphan_ends_at_its_next_step(tiny) -> None:
    """Another process takes the folder over in step 3: this one writes no line of it, and does not go on for long."""
    config = tiny(training__steps=50, checkpoint__every=50)
    run, last = Path(config.run.dir), [0]

    def before(step: int) -> None:
        last[0] = step
        if step == 3:
            (run / ".lock" / "generation-00000002.json").write_text("{}")

    with pytest.raises(TrainingFault, match="was taken over"):
        trainer.train(config, step_by_step(before))
    assert len(read_metrics(run)) <= 2
    assert last[0] < 50


def test_the_queue_is_bounded_and_an_action_may_put_another() -> None:
    writer, goes, done = BackgroundWriter(waiting=2), threading.Event(), []
    writer.put(lambda: (goes.wait(30), writer.put(lambda: done.append("inner"))))  # type: ignore[arg-type,return-value]
    for _ in range(2):
        writer.put(lambda: done.append("outer"))
    assert not writer.flush(0.05)
    more = threading.Thread(target=writer.put, args=(lambda: done.append("last"),), daemon=True)
    more.start()
    more.join(0.2)
    assert more.is_alive(), "there is no room"
    goes.set()
    more.join(30)
    assert writer.flush()
    assert done == ["inner", "outer", "outer", "last"]
    writer.close()
