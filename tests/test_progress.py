"""What a person sees of work that takes long, on a terminal and elsewhere."""

import contextlib
import io
import os
import pty

import pytest

from lst_prep.progress import StageProgress
from megatron_lst.progress import Progress, clock


def test_plain_lines_tell_the_first_thing_then_some_and_the_end() -> None:
    out = io.StringIO()
    with Progress("train x", 5, done=2, stream=out, line_every=1e9) as progress:
        for step in (3, 4, 5):
            progress.update(step, f"loss {step}")
    assert out.getvalue() == "train x: 3/5, loss 3, 0:00 left\ntrain x: 5/5, loss 5, took 0:00\n"


def test_lines_come_as_often_as_asked() -> None:
    out = io.StringIO()
    with Progress("x", 4, stream=out, line_every=0.0) as progress:
        for step in range(1, 5):
            progress.update(step)
    assert [line.split(",")[0] for line in out.getvalue().splitlines()] == ["x: 1/4", "x: 2/4", "x: 3/4", "x: 4/4"]


def test_work_that_fails_and_work_that_was_done_before_have_no_last_line() -> None:
    out = io.StringIO()
    with Progress("nothing", 5, done=5, stream=out):
        pass
    with pytest.raises(RuntimeError), Progress("fails", 5, stream=out, line_every=1e9) as progress:
        progress.update(1)
        raise RuntimeError
    assert out.getvalue() == "fails: 1/5, 0:00 left\n"


def test_a_terminal_shows_a_bar() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, Progress("bar", 3, stream=terminal) as progress:
        progress.update(2, "a detail")
    shown = ""
    with contextlib.suppress(OSError):  # the other end is closed, and all is read
        while more := os.read(ours, 1 << 16):
            shown += more.decode(errors="replace")
    os.close(ours)
    assert "bar" in shown and "2/3" in shown and "a detail" in shown
    assert "took" not in shown


def test_a_stage_tells_how_much_faster_than_the_audio_it_is() -> None:
    out = io.StringIO()
    with StageProgress("units", 2, stream=out) as progress:
        progress.advance(audio_seconds=1e9, note="a note")
        progress.advance()
    first, last = out.getvalue().splitlines()
    assert first.startswith("prep units: 1/2, ") and "x real time, a note, 0:00 left" in first
    assert "a note, took" in last


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3723)] == ["0:00", "1:00", "59:59", "1:02:03"]
