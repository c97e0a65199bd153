"""Real processes on gloo, a new set for each call.

Used again, they would be slower: gloo leaves threads of every group behind, and each wakes up a hundred times a second.
"""

import multiprocessing
import multiprocessing.connection
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CALL_SECONDS = 120.0


class RankPool:
    """Forks ranks from a server that has imported torch and Megatron-core already."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.support.preload"])

    def run(self, function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
        """`function(*arguments)` on `world` ranks; their results by rank.

        Raises:
            RuntimeError: with the traceback of every rank that failed, or that some did not answer.
        """
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            ranks = [self._start(function, arguments, rank, world, store) for rank in range(world)]
            try:
                return _answers([pipe for _, pipe in ranks])
            finally:
                for process, pipe in ranks:
                    pipe.close()
                    process.kill()
                    process.join()

    def _start(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, world: int, store: str
    ) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, function, arguments, rank, world, store))
        process.start()
        theirs.close()
        return process, ours


def _answers(pipes: list[Connection]) -> list[Any]:
    deadline = time.monotonic() + CALL_SECONDS
    answers: dict[int, tuple[bool, Any]] = {}
    while len(answers) < len(pipes) and time.monotonic() < deadline:
        waiting = [pipe for i, pipe in enumerate(pipes) if i not in answers]
        for pipe in multiprocessing.connection.wait(waiting, timeout=1.0):
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                answers[rank] = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                answers[rank] = False, "ended without an answer"
        if any(not ok for ok, _ in answers.values()):
            deadline = min(deadline, time.monotonic() + 10)  # the others wait for the one that failed
    failed = [f"rank {i}:\n{text}" for i, (ok, text) in sorted(answers.items()) if not ok]
    missing = [i for i in range(len(pipes)) if i not in answers]
    if missing or failed:
        raise RuntimeError("\n".join([*failed, f"ranks without an answer: {missing}"]))
    return [answers[i][1] for i in range(len(pipes))]


def _serve(
    pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, world: int, store: str
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
        answer = True, function(*arguments)
    except BaseException:
        answer = False, traceback.format_exc()
    pipe.send(answer)
    pipe.poll(CALL_SECONDS)  # nobody leaves while others may still need it
