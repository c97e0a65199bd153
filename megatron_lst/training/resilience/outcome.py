"""STOPPED.json: how a run ended, for the scheduler's script, for the next start and for people.

A launcher cannot learn this from the exit code alone: torchrun turns every failure into 1, `srun` reports the
largest code of all nodes, and "saved on a signal" and "finished" are both 0. No file after a run that is gone means
that it was killed without a word (kill -9, out of memory, a lost node).
"""

import os
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Any, Literal

from megatron_lst.errors import LstError
from megatron_lst.files import create_json, read_json, write_json

NAME = "STOPPED.json"
PEER_SECONDS = 3.0
"""A rank whose peer has gone waits this long for the peer's own account of it."""
Next = Literal["finished", "requeue", "stop", "retry"]


def clear(run_dir: str | Path) -> None:
    """Forget how the last run ended: called by the writer once it holds the lock."""
    (Path(run_dir) / NAME).unlink(missing_ok=True)


def read(run_dir: str | Path) -> dict[str, Any] | None:
    """What `finished`, `saved` or `failed` wrote; None when the run goes on or was killed without a word."""
    return read_json(Path(run_dir) / NAME)


def finished(run_dir: str | Path, step: int) -> None:
    """The last step is done and saved. Exit code 0."""
    write_json(Path(run_dir) / NAME, _describe("finished", "finished", step))


def saved(run_dir: str | Path, step: int, received: signal.Signals) -> None:
    """A checkpoint of `step` was written because of a signal. Exit code 0.

    SIGUSR1 comes from the launch script ahead of a time limit or a preemption: it asks to be started again. SIGTERM
    and SIGINT come from a person or from a service that stops: they do not.
    """
    again: Next = "requeue" if received == signal.SIGUSR1 else "stop"
    content = _describe("saved", again, step) | {"signal": received.name}
    write_json(Path(run_dir) / NAME, content)


def failed(run_dir: str | Path, error: BaseException, *, rank: int, step: int | None, retry: bool = False) -> bool:
    """Record an error; the first rank that fails is the one that counts.

    Every rank's traceback goes to logs/error-rank00000.txt. To be called on the rank that failed, as it fails.

    Args:
        retry: True when starting again may help (a hang). An error that is none of ours is always worth it: most
            often it is the loss of a peer that was killed without a word.

    Returns:
        True if this was the run's first error.
    """
    text = "".join(traceback.format_exception(error))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    logs = Path(run_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with open(logs / f"error-rank{rank:05d}.txt", "a") as file:
        file.write(f"{stamp} step {step} on {socket.gethostname()}\n{text}\n")
    content = _describe("failed", "retry" if retry or not isinstance(error, LstError) else "stop", step) | {
        "exit_code": error.exit_code if isinstance(error, LstError) else 1,
        "rank": rank,
        "host": socket.gethostname(),
        "error": f"{type(error).__name__}: {error}",
    }
    return create_json(Path(run_dir) / NAME, content)


def await_failure(run_dir: str | Path, seconds: float = PEER_SECONDS) -> dict[str, Any] | None:
    """What another rank wrote as it failed, for one that lost its peer in the middle of a collective and would blame
    the network; None when nothing comes: the peer was killed without a word, or the error is this rank's own."""
    end = time.monotonic() + seconds
    while True:
        stopped = read(run_dir)
        if stopped is not None and stopped["state"] == "failed":
            return stopped
        if time.monotonic() > end:
            return None
        time.sleep(0.1)


def as_error(stopped: dict[str, Any]) -> LstError:
    """The failure of another rank as this one's, with the same exit code."""
    error = LstError(f"rank {stopped['rank']} on {stopped['host']} failed: {stopped['error']}")
    error.exit_code = stopped["exit_code"]
    return error


def _describe(state: str, what_next: Next, step: int | None) -> dict[str, Any]:
    return {
        "state": state,
        "next": what_next,
        "step": step,
        "time": time.time(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0),
    }
