"""A signal on any rank becomes one decision of all ranks at the end of a step. What to save is the trainer's."""

import atexit
import contextlib
import os
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from megatron_lst.terminal import heard_signals

ORDER = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""What wins over what."""


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler, not SIG_IGN: programs that this process starts would be born deaf to what is ignored."""


def _hear_no_more(number: signal.Signals) -> None:
    """The signal does nothing from now on, and nothing when the interpreter has taken its handlers away at the end."""
    signal.signal(number, _nothing)
    atexit.register(signal.signal, number, signal.SIG_IGN)


class StopSignals:
    """Catches signals and remembers them; nothing else happens until the ranks agree.

    Ranks do not get a signal at the same moment, and some get none: a rank that stopped by itself would leave the
    others in a collective for ever. So each rank's `numbers` travel in the step's own reduction, and `agreed` reads
    the sums.
    """

    def __init__(self) -> None:
        """The signals that end a run are those of `terminal.STOP_SIGNALS` that this process was not started to ignore.
        A second SIGINT raises KeyboardInterrupt at once."""
        self._signals = heard_signals()
        self._received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in self._signals:
            self._before[number] = signal.signal(number, self._remember)
        # launchers start ranks with SIGUSR1 blocked; one that came before this is delivered now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # launchers repeat themselves; a late signal must not kill a rank on its way out, after the save
            late = number == signal.SIGUSR1 or (number in (signal.SIGTERM, signal.SIGHUP) and self._received)
            if late and handler == signal.SIG_DFL:
                _hear_no_more(number)
            else:
                signal.signal(number, handler)
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received:
            message = f"{signal.Signals(number).name}: saving at the end of this step, then stopping\n"
            with contextlib.suppress(OSError):  # the terminal that sends SIGHUP is gone
                os.write(2, message.encode())  # print() is not safe in a signal handler
        # SIGUSR1 is the one that promises a restart, and SIGTERM follows it when the time is over
        if self._received != signal.SIGUSR1:
            self._received = number

    @property
    def received(self) -> signal.Signals | None:
        """What this rank has received."""
        return signal.Signals(self._received) if self._received else None

    def numbers(self) -> list[int]:
        """1 for what this rank has received, in the order of `ORDER`, 0 for the others: to be summed over ranks."""
        return [int(self._received == number) for number in ORDER]


def agreed(counts: Sequence[float]) -> signal.Signals | None:
    """What any rank has received, from the sums of all ranks' `numbers`: the same answer on all ranks.

    SIGUSR1 wins over SIGTERM, that over SIGHUP, and that over SIGINT.
    """
    return next((number for number, count in zip(ORDER, counts, strict=True) if count), None)
