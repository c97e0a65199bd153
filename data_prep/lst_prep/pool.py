"""Worker processes on this machine, replaced when they die."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from lst_prep.dealing import Dealing
from lst_prep.items import ItemWorker, Outcome, Receipts, Stage


def _worker(connection: Connection, stage: Stage, receipts: Receipts, number: int) -> None:
    """Body of a worker process: items come in, outcomes go out. Ends when the parent does."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["LST_PREP_WORKER"] = str(number)  # which GPU it takes
    worker = ItemWorker(stage, receipts)
    try:
        connection.send(worker.start())
        while True:
            connection.send(worker.do(*connection.recv()))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        worker.close()


def how_it_ended(process: Any) -> str:
    """Of a process that has ended."""
    code = process.exitcode
    how = f"killed by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return f"{how} (process {process.pid} on this machine)"


class Pool:
    """Worker processes that are replaced when they die."""

    def __init__(self, dealing: Dealing) -> None:
        self._dealing, self._size = dealing, dealing.places
        self._context = multiprocessing.get_context("spawn")
        self._alive: dict[Connection, tuple[Any, int | None, int | None]] = {}
        self._numbers: dict[Connection, int] = {}

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        number = min(set(range(self._size + 1)) - set(self._numbers.values()))
        stage, receipts = self._dealing.stage, self._dealing.receipts
        process = self._context.Process(
            target=_worker, args=(theirs, stage, receipts, number), daemon=True, name=f"prep-{stage.name}"
        )
        process.start()
        theirs.close()
        self._alive[ours], self._numbers[ours] = (process, None, None), number

    def run(self, take: Callable[[int | None, Outcome, str], None]) -> None:
        """Do all items.

        Args:
            take: called with the item, what came of it, and where.
        """
        dealing = self._dealing
        try:
            for _ in range(self._size):
                self._start()
            while self._alive:
                for connection in wait(list(self._alive)):
                    assert isinstance(connection, Connection)
                    process, item, held = self._alive[connection]
                    try:
                        outcome = connection.recv()
                    except (EOFError, ConnectionResetError):
                        self._close_worker(connection)
                        dealing.died(item, how_it_ended(process), held)
                        if dealing.waiting:
                            self._start()
                        continue
                    take(item, dealing.settle(item, outcome, f"process {process.pid} on this machine"), "")
                    self._feed(connection, process, held)
        finally:
            for connection in list(self._alive):
                self._alive[connection][0].terminate()
                self._close_worker(connection)

    def _feed(self, connection: Connection, process: Any, held: int | None) -> None:
        item, held = self._dealing.next(held)
        if item is None:
            self._close_worker(connection)
            return
        self._alive[connection] = (process, item, held)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send((item, held))

    def _close_worker(self, connection: Connection) -> None:
        """Close the connection to a worker that has ended, or ends now, and wait for its process."""
        process, *_ = self._alive.pop(connection)
        self._numbers.pop(connection)
        connection.close()
        process.join(timeout=30)
