"""events.log: one line an event, times that never go back, one writer."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from megatron_lst.errors import TrainingFault
from megatron_lst.training.resilience.events import EventKind, EventLog, read_events

ROOT = Path(__file__).parents[3]


class Clock:
    def __init__(self) -> None:
        self.wall, self.monotonic = 1_800_000_000.0, 50.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def log(self, path: Path, **options) -> EventLog:
        return EventLog(path, wall=lambda: self.wall, monotonic=lambda: self.monotonic, **options)


def test_a_line_says_when_where_what(tmp_path):
    clock = Clock()
    log = clock.log(tmp_path / "events.log")
    log.write("skip", "loss is nan;\nnot updated", step=12)
    assert (tmp_path / "events.log").read_text() == (
        "2027-01-15T08:00:00.000Z step=12 skip: loss is nan; not updated\n"
    )
    (event,) = read_events(tmp_path / "events.log")
    assert (event.time, event.step, event.kind, event.message) == (clock.wall, 12, "skip", "loss is nan; not updated")


def test_a_clock_that_goes_back_is_an_event_and_times_do_not(tmp_path):
    clock = Clock()
    log = clock.log(tmp_path / "events.log")
    log.write("start", "a")
    clock.pass_time(10)
    log.write("checkpoint", "b")
    clock.wall -= 3600
    log.write("checkpoint", "c")
    clock.pass_time(1)
    log.write("checkpoint", "d")
    events = read_events(tmp_path / "events.log")
    assert [e.kind for e in events] == ["start", "checkpoint", "clock", "checkpoint", "checkpoint"]
    assert "backward by 3600 s" in events[2].message
    assert [e.time for e in events] == sorted(e.time for e in events)


def test_a_restart_on_a_machine_whose_clock_is_behind(tmp_path):
    clock = Clock()
    clock.log(tmp_path / "events.log").write("start", "a")
    clock.wall -= 600
    clock.log(tmp_path / "events.log").write("start", "b")
    events = read_events(tmp_path / "events.log")
    assert [e.kind for e in events] == ["start", "clock", "start"]
    assert "600 s behind" in events[1].message
    assert [e.time for e in events] == sorted(e.time for e in events)


def test_a_steady_clock_makes_no_clock_events(tmp_path):
    clock = Clock()
    log = clock.log(tmp_path / "events.log")
    for _ in range(5):
        clock.pass_time(100)
        log.write("checkpoint", "x")
    assert {e.kind for e in read_events(tmp_path / "events.log")} == {"checkpoint"}


def test_only_the_writer_writes(tmp_path):
    EventLog(tmp_path / "events.log", writer=False).write("start", "a")
    assert not (tmp_path / "events.log").exists()


def test_an_orphan_writes_nothing(tmp_path):
    def refuse() -> None:
        raise TrainingFault("taken over")

    log = EventLog(tmp_path / "events.log", guard=refuse)
    with pytest.raises(TrainingFault):
        log.write("start", "a")
    assert not (tmp_path / "events.log").exists()


def test_half_a_line_is_left_out(tmp_path):
    log = EventLog(tmp_path / "events.log")
    log.write("start", "a")
    with open(tmp_path / "events.log", "a") as file:
        file.write("2026-11-22T1")
    assert [e.message for e in read_events(tmp_path / "events.log")] == ["a"]


def test_a_disk_that_takes_nothing_does_not_end_the_run(tmp_path, capfd):
    log = EventLog(tmp_path / "events.log")
    (tmp_path / "events.log").mkdir()  # stands for any reason why the file cannot be written
    log.write("start", "the message")
    said = capfd.readouterr().err
    assert "not written" in said
    assert "the message" in said


def kinds_written(code: str) -> set[str]:
    """Kinds in calls that write an event: `tell("skip", ...)`, `events.write`, `_append`, `partial(tell, ...)`."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name, arguments = ast.unparse(call.func).lstrip("_"), call.args
        if name == "partial" and arguments:
            name, arguments = ast.unparse(arguments[0]), arguments[1:]
        if name.split(".")[-1].lstrip("_") in ("tell", "append") or name.endswith("events.write"):
            words = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found |= {word for word in words[:1] if re.fullmatch("[a-z_]+", word)}
    return found


def kinds_documented(page: str) -> set[str]:
    """Words of the entry of events.log, without what stands in brackets."""
    (row,) = re.findall(r"^- `events\.log`: one line an event: (.*?)(?=^- |\n\n)", page, re.MULTILINE | re.DOTALL)
    return {word.strip() for word in re.sub(r"\([^)]*\)", "", row).split(",")}


def test_every_kind_of_event_is_written_and_documented():
    written = set().union(*(kinds_written(p.read_text()) for p in (ROOT / "megatron_lst" / "training").rglob("*.py")))
    assert written == set(get_args(EventKind)) == kinds_documented((ROOT / "docs" / "training.md").read_text())


def test_kinds_are_found_where_they_are_written():
    code = """
run.tell("lock", reason)
self._tell(f"{path} has all steps again")
self.events.write("hang", sentence, step)
self._append(wall, None, "clock", f"by {jump} s")
MetricsWriter(folder, start, partial(self.tell, "metrics"), config_yaml)
print("stop")
"""
    assert kinds_written(code) == {"lock", "hang", "clock", "metrics"}
    assert kinds_documented("- `events.log`: one line an event: start, slow (a rank, by name), stop\n\n") == {
        "start",
        "slow",
        "stop",
    }
