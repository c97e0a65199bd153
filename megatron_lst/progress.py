"""What a person sees of work that takes long: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import IO, Any, Self


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A bar, or a line for the first thing done, now and then, and at the end; with the remaining time.

    Use it as a context manager. Work that fails, and work in which nothing was done, has no last line.

    Args:
        title: what is being done.
        total, done: things in all, and those that an earlier run did.
        stream: where it goes; None: stderr.
        line_every: seconds between plain lines.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, stream: IO[str] | None = None, line_every: float = 10.0
    ) -> None:
        self.title, self.total, self.done, self.detail = title, total, done, ""
        self._before, self._stream, self._line_every = done, stream or sys.stderr, line_every
        self._began = self._last_line = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, detail="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.done > self._before:
            self._line(f"took {clock(self.elapsed)}")

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    def update(self, done: int, detail: str = "") -> None:
        """So many things are done, those of an earlier run included."""
        first = self.done == self._before < done
        self.done, self.detail = done, detail
        if self._bar is not None:
            self._bar.update(self._task, completed=done, detail=detail)
        elif done < self.total and (first or time.monotonic() - self._last_line >= self._line_every):
            left = self.elapsed / max(1, done - self._before) * (self.total - done)
            self._line(f"{clock(left)} left")

    def _line(self, time_said: str) -> None:
        self._last_line = time.monotonic()
        parts = [f"{self.title}: {self.done}/{self.total}", self.detail, time_said]
        print(", ".join(part for part in parts if part), file=self._stream, flush=True)
