"""What a long run has to do with its terminal: the signals that ask it to stop, and output that nobody reads."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What asks a run to save and leave: a person, a service or a closed terminal; SIGUSR1 is the scheduler's."""


_IGNORED = {n for n in STOP_SIGNALS if signal.getsignal(n) == signal.SIG_IGN}  # as this process was started


def heard_signals() -> tuple[signal.Signals, ...]:
    """The `STOP_SIGNALS` that this process is to follow: those that it was started to ignore stay ignored, as under
    `nohup` (SIGHUP) or in a script's background (SIGINT). SIGUSR1 is always followed: job scripts ignore it to stay
    alive themselves, and mean the ranks."""
    return tuple(n for n in STOP_SIGNALS if n == signal.SIGUSR1 or n not in _IGNORED)


class _Unfailing(io.RawIOBase):
    """A file descriptor to write to; what cannot be written is gone, and nobody hears of it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        with contextlib.suppress(OSError):  # closed pipe, closed terminal, full disk
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]
        return len(data)


def _unfailing(stream: object) -> io.TextIOWrapper | None:
    """A text stream to the same place; None: the stream is not the process's own, as under a test that reads it."""
    try:
        descriptor, encoding = stream.fileno(), stream.encoding  # type: ignore[attr-defined]
        stream.flush()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
    buffered = io.BufferedWriter(_Unfailing(descriptor))  # type: ignore[type-var]
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=True)


@contextlib.contextmanager
def unfailing_output() -> Iterator[None]:
    """Within it, a print never fails: a closed pipe, a closed terminal, a full disk or a character that the terminal
    does not have costs the text, not the work. What matters goes to files. Within itself it changes nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_unfailing(stream) or stream for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
