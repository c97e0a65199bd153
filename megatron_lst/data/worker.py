"""A data worker: a process of its own that builds the rows of some streams and sends them through a socket.

It is started as a fresh interpreter, not forked: no copy of the trainer's threads, devices or process groups, and
nothing that must be importable from the trainer's script.  There is no shared memory, hence none to leak.  It ends
when its socket closes, hence with its parent.
"""

import contextlib
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from megatron_lst.config.schema import Config
from megatron_lst.data.stream import RowStream
from megatron_lst.errors import LstError
from megatron_lst.patching.serialisation import row_to_bytes
from megatron_lst.terminal import STOP_SIGNALS

READY_STEPS = 3
"""Steps that a worker builds ahead of what the socket holds."""


@dataclass(frozen=True)
class Task:
    """What a worker is told: the loader's arguments and its own streams."""

    config: Config
    data_rank: int
    data_size: int
    state: dict[str, Any] | None
    start_step: int
    streams: list[int]


def end_with_parent(connection: Connection) -> None:
    """Wait for the other side to close its socket, which the kernel does however the parent ends, and end too."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(0)


def serve(task: Task, connection: Connection, open_stream: Callable[..., RowStream] = RowStream) -> None:
    """Build rows for ever and send them, one message a row, until the other side closes.

    A message is a pickled ("row", bytes of the row, cursor), or ("error", type name, message) once, at the end.
    """
    ready: queue.Queue[bytes | None] = queue.Queue(maxsize=READY_STEPS * max(1, len(task.streams)))

    def build() -> None:
        try:
            stream = open_stream(
                task.config, task.data_rank, task.data_size, task.state, task.start_step, streams=task.streams
            )
            while True:
                for row, cursor in stream.rows_of_step():
                    ready.put(pickle.dumps(("row", row_to_bytes(row).tobytes(), cursor), protocol=5))
        except LstError as error:
            ready.put(pickle.dumps(("error", type(error).__name__, str(error))))
        except BaseException as error:
            ready.put(pickle.dumps(("error", type(error).__name__, traceback.format_exc())))
        finally:  # also when there is no memory left to say more: an end is seen at once, silence after minutes
            ready.put(None)

    threading.Thread(target=build, daemon=True).start()
    while (message := ready.get()) is not None:
        connection.send_bytes(message)


def main(descriptor: int) -> None:
    """Entry point of the process: the task arrives through the socket `descriptor`."""
    # schedulers send these to every process; they are for the trainer, which still needs rows until its step ends
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        task: Task = pickle.loads(connection.recv_bytes())
        threading.Thread(target=end_with_parent, args=(connection,), daemon=True).start()
        serve(task, connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    os._exit(0)
