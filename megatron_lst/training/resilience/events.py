"""events.log: the story of a run, one line an event, written by one rank. Metrics do not go here.

A line is `2026-01-31T12:00:00.000Z step=120 kind: message`. Times in the file never go back, whatever the machine's
clock does: a clock that jumps is itself an event, and the lines go on from the last time that was written.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

EventKind = Literal[
    "engine",
    "start",
    "lock",
    "checkpoint",
    "checkpoint_failed",
    "resume",
    "schedule",
    "damaged",
    "skip",
    "spike",
    "rollback",
    "slow",
    "metrics",
    "clock",
    "hang",
    "stop",
]
"""Every kind that is written; docs/training.md lists the same ones."""
JUMP_SECONDS = 2.0
_LINE = re.compile(r"^(?P<time>\S+Z) (?:step=(?P<step>\d+) )?(?P<kind>[a-z_]+): (?P<message>.*)$")


@dataclass(frozen=True)
class Event:
    """One line of events.log.

    Attributes:
        time: seconds since the epoch.
        step: optimiser step, None where there is none.
        kind: an `EventKind`; in the log of another version perhaps another word of a-z and `_`.
        message: one line.
    """

    time: float
    step: int | None
    kind: str
    message: str


class EventLog:
    """Appends events; on ranks that do not write the run folder it does nothing."""

    def __init__(
        self,
        path: str | Path,
        *,
        writer: bool = True,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        guard: Callable[[], None] | None = None,
        put: Callable[[Callable[[], None]], None] = lambda action: action(),
    ):
        """
        Args:
            path: events.log of the run folder; lines of earlier starts stay.
            writer: False on every rank but one.
            wall, monotonic: the two clocks.
            guard: called before each write; raises where this process may no longer write (`RunLock.check`).
            put: has the writing done, now or later (`BackgroundWriter.put`); times are those of the call of `write`.
        """
        self.path = Path(path)
        self._writer, self._wall, self._monotonic, self._guard, self._put = writer, wall, monotonic, guard, put
        self._anchor = (wall(), monotonic())
        self._last = 0.0
        if writer:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._end_half_a_line()
            events = read_events(self.path)
            self._last = events[-1].time if events else 0.0
            if self._anchor[0] < self._last - JUMP_SECONDS:
                behind = self._last - self._anchor[0]
                self._append(
                    self._last, None, "clock", f"this machine's clock is {behind:.0f} s behind the last event here"
                )

    def _end_half_a_line(self) -> None:
        """What a full disk cut off must not swallow the next line."""
        with contextlib.suppress(OSError), open(self.path, "rb+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")

    def write(self, kind: EventKind, message: str, step: int | None = None) -> None:
        """Append one event; line breaks of the message become spaces."""
        if not self._writer:
            return
        wall, elapsed = self._wall(), self._monotonic() - self._anchor[1]
        jump = wall - (self._anchor[0] + elapsed)
        if abs(jump) > JUMP_SECONDS:
            direction = "forward" if jump > 0 else "backward"
            self._anchor = (wall, self._monotonic())
            self._append(wall, None, "clock", f"the clock went {direction} by {abs(jump):.0f} s")
        self._append(wall, step, kind, message)

    def _append(self, when: float, step: int | None, kind: EventKind, message: str) -> None:
        at = f"step={step} " if step is not None else ""
        self._put(lambda: self._write_line(when, f"{at}{kind}: {' '.join(message.split())}\n"))

    def _write_line(self, when: float, text: str) -> None:
        if self._guard is not None:
            self._guard()
        when = self._last = max(self._last, when)
        stamp = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{stamp} {text}"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())  # one call: a reader never sees half a line
            finally:
                os.close(descriptor)
        except OSError as error:  # a full disk is what most events are about then: no reason to end the run
            print(f"{self.path}: not written ({error}): {line}", end="", file=sys.stderr, flush=True)


def read_events(path: str | Path) -> list[Event]:
    """All events of a log; lines that are none (cut off by a full disk) are left out. No file: no events."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for match in filter(None, map(_LINE.match, lines)):
        try:
            when = datetime.fromisoformat(match["time"]).timestamp()
        except ValueError:
            continue
        step = int(match["step"]) if match["step"] else None
        events.append(Event(when, step, match["kind"], match["message"]))
    return events
