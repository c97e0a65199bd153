"""What the run folder gets in every step is written by a thread: the step does not wait for the file system.

Actions run one after the other, in the order in which they were given. The queue is bounded: a file system that stays
away for long holds the run up in the end, instead of filling the memory.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

WAITING = 1000
"""Actions that may wait."""


class BackgroundWriter:
    """Runs actions in a thread of its own.

    An action that raises is the last one: its error is raised by the next call here, on the thread that makes it.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        """
        Args:
            waiting: so many actions may wait; one more waits for room.
        """
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="run-folder", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (action := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                action()
            except BaseException as error:
                self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def put(self, action: Callable[[], None]) -> None:
        """Have `action` run after all others; at once where an action itself asks for it.

        Raises:
            BaseException: what an earlier action raised.
        """
        if threading.current_thread() is self._thread:
            action()
            return
        self._check()
        self._queue.put(action)

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until everything that was put before is done. Any thread may call this.

        Args:
            seconds: the longest wait; None: however long it takes.

        Returns:
            False where the time was over.

        Raises:
            BaseException: what an action raised.
        """
        if threading.current_thread() is self._thread:
            return True
        done = threading.Event()
        try:
            self._queue.put(done.set, timeout=seconds)
        except queue.Full:
            return False
        # Actions after an error are dropped, and this one with them.
        left = seconds
        while not done.wait(0.05 if left is None else min(0.05, left)):
            self._check()
            if left is not None and (left := left - 0.05) <= 0:
                return False
        self._check()
        return True

    @contextlib.contextmanager
    def flushed(self) -> Iterator[None]:
        """At its end everything is written; what could not be is raised, where nothing else was."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self.flush()
            raise
        self.flush()

    def close(self) -> None:
        """Write what waits, and end the thread. What failed is told by `flush`, not here."""
        self._queue.put(None)
        self._thread.join()
