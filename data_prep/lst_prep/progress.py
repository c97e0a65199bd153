"""Progress for people: bars on a terminal, plain lines elsewhere, with real-time factor and remaining time."""

import sys
import time
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_EVERY = 5.0
"""Seconds between plain lines."""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StageProgress:
    """Progress of one stage. Use as a context manager.

    Args:
        name: shown in front.
        total: items in all.
        done: items that an earlier run did.
        stream: where plain lines and bars go.
    """

    def __init__(self, name: str, total: int, done: int = 0, stream: IO[str] | None = None) -> None:
        self.name, self.total, self.done, self._before = name, total, done, done
        self.audio_seconds, self.note = 0.0, ""
        self.started = self._last = time.monotonic()
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        if self._stream.isatty():
            self._bar = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(name, total=total, completed=done, rate="", note="")

    def __enter__(self) -> "StageProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.rate(), note=self.note)
            self._bar.stop()
        elif kind is None and self.total > self._before:
            self._line(final=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def rate(self) -> str:
        """`123x real time` where audio was counted, else items a second."""
        elapsed = max(self.elapsed, 1e-6)
        if self.audio_seconds:
            return f"{self.audio_seconds / elapsed:,.0f}x real time"
        return f"{(self.done - self._before) / elapsed:,.1f} items/s"

    def advance(self, items: int = 1, audio_seconds: float = 0.0, note: str = "") -> None:
        """Count finished items."""
        self.done += items
        self.audio_seconds += audio_seconds
        self.note = note or self.note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.rate(), note=self.note)
        elif time.monotonic() - self._last >= _PLAIN_EVERY:
            self._line()

    def _line(self, final: bool = False) -> None:
        self._last = time.monotonic()
        text = f"prep {self.name}: {self.done}/{self.total}"
        if self.done > self._before:
            text += f", {self.rate()}"
            if final:
                text += f", took {_duration(self.elapsed)}"
            else:
                left = (self.total - self.done) * self.elapsed / (self.done - self._before)
                text += f", {_duration(left)} left"
        print(text + (f", {self.note}" if self.note else ""), file=self._stream, flush=True)
