"""The loader: a rank's rows, step by step, built ahead by worker processes or by a thread (SPEC 6).

What it yields does not depend on how many workers build it.  It never hangs: silence for `data.stall_seconds`, a
dead worker and a damaged shard each raise an error that says which.
"""

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

import megatron_lst
from megatron_lst import errors
from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import Mixture
from megatron_lst.data.stream import Cursor, RowStream, Share, StepRows
from megatron_lst.data.worker import Task
from megatron_lst.errors import LstError, TrainingFault
from megatron_lst.patching.row import Row
from megatron_lst.patching.serialisation import rows_from_bytes


class Loader(Protocol):
    """An endless iterator over steps that must be closed; a context manager."""

    def __iter__(self) -> Iterator[StepRows]: ...

    def __next__(self) -> StepRows: ...

    def close(self) -> None: ...

    def __enter__(self) -> "Loader": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_loader(
    config: Config,
    data_rank: int,
    data_size: int,
    state: Mapping[str, Any] | None = None,
    start_step: int = 0,
    mixture: Mixture | None = None,
) -> Loader:
    """The rows of one data-parallel rank, from step `start_step` (0: the first) on.

    Args:
        state: merged `StepRows.cursors` of all steps before and of all ranks; None at the start of a run.
        mixture: opened sources, for tests in this process (with `data.workers=0` only).

    Raises:
        UserError: sources that cannot be opened, a number of ranks that does not divide, a state that does not fit.
    """
    workers = min(config.data.workers, config.streams // data_size)
    if workers > 0 and mixture is None:
        return WorkerLoader(config, data_rank, data_size, state, start_step, workers)
    return ThreadLoader(RowStream(config, data_rank, data_size, state, start_step, mixture), config.data.stall_seconds)


class _Closing:
    """The context manager of both loaders."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ThreadLoader(_Closing):
    """Rows from a thread of this process, one step ahead (`data.workers=0`)."""

    def __init__(self, stream: RowStream, stall_seconds: float) -> None:
        self._stall = stall_seconds
        self._closed = threading.Event()
        self._queue: queue.Queue[StepRows | BaseException] = queue.Queue(maxsize=1)
        threading.Thread(target=self._build, args=(stream,), daemon=True, name="data").start()

    def _build(self, stream: RowStream) -> None:
        item: StepRows | BaseException
        while not self._closed.is_set():
            try:
                item = next(stream)
            except BaseException as error:
                item = error
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        try:
            item = self._queue.get(timeout=self._stall)
        except queue.Empty:
            raise TrainingFault(_stalled(self._stall, "the data thread")) from None
        if isinstance(item, LstError):
            raise item
        if isinstance(item, BaseException):
            raise RuntimeError(f"the data thread failed: {type(item).__name__}: {item}") from item
        return item

    def close(self) -> None:
        self._closed.set()


class WorkerLoader(_Closing):
    """Rows from worker processes; each builds whole streams, so that its rows come in order."""

    def __init__(
        self,
        config: Config,
        data_rank: int,
        data_size: int,
        state: Mapping[str, Any] | None,
        start_step: int,
        workers: int,
    ) -> None:
        self._share = Share(config.training.global_batch, config.streams, data_rank, data_size)
        self._stall = config.data.stall_seconds
        self._step = start_step
        self._workers: list[_Worker] = []
        owned = self._share.owned_streams().tolist()
        self._worker_of = {stream: i % workers for i, stream in enumerate(owned)}
        try:
            for number in range(workers):
                streams = [s for s, worker in self._worker_of.items() if worker == number]
                own = {str(s): state[str(s)] for s in streams if str(s) in state} if state else None
                task = Task(config, data_rank, data_size, own, start_step, streams)
                self._workers.append(_Worker(number, task))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        rows: list[Row] = []
        cursors: dict[str, Cursor] = {}
        for index in self._share.rows(self._step).tolist():
            stream = index % self._share.streams
            row, cursor = self._workers[self._worker_of[stream]].receive(self._stall)
            assert row.index == index, f"worker sent row {row.index}, expected {index}"
            rows.append(row)
            cursors[str(stream)] = cursor
        self._step += 1
        return StepRows(rows, cursors)

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __del__(self) -> None:
        self.close()


class _Worker:
    """One worker process, seen from the loader."""

    def __init__(self, number: int, task: Task) -> None:
        self.number = number
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        package = str(Path(megatron_lst.__file__).parents[1])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from megatron_lst.data.worker import main; main({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(pickle.dumps(task))

    def receive(self, stall_seconds: float) -> tuple[Row, Cursor]:
        """The worker's next row. Raises what went wrong in it, or TrainingFault when it is silent or dead."""
        try:
            if not self._connection.poll(stall_seconds):
                raise TrainingFault(_stalled(stall_seconds, f"data worker {self.number} (pid {self.process.pid})"))
            kind, first, second = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError, BrokenPipeError):
            raise TrainingFault(f"data worker {self.number} (pid {self.process.pid}) died: {self._end()}") from None
        if kind == "row":
            (row,) = rows_from_bytes(np.frombuffer(first, np.uint8))
            return row, second
        raise errors.of_name(first, second, f"data worker {self.number} failed")

    def _end(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        if code < 0:
            name = signal.Signals(-code).name
            why = {"SIGKILL": " (out of memory?)", "SIGBUS": " (a shard that became shorter while it was read?)"}
            return f"killed by {name}{why.get(name, '')}"
        return f"exit code {code}"

    def close(self) -> None:
        self._connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _stalled(seconds: float, who: str) -> str:
    return (
        f"{who} gave no row for {seconds:g} s (data.stall_seconds), at {time.strftime('%H:%M:%S')}: storage that does "
        f"not answer, or a machine that is too busy"
    )
