"""`megatron_lst`, slowed down: time to preempt, to kill, to run out of time.

LST_TEST_SECONDS pauses every rank before each step, and the file LST_TEST_HOLD does for as long as it is there;
LST_TEST_SLOW_RANK makes one rank wait for its data as well. LST_TEST_KILL kills the first process that comes to a phase
of a save (`SAVE_PHASES`), once the folder LST_TEST_KILL_AFTER is there.
"""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from megatron_lst.cli.app import main
from megatron_lst.engines import checkpoint_files, sharded_checkpoint
from megatron_lst.engines.base import StepResult
from megatron_lst.engines.megatron.engine import MegatronEngine
from megatron_lst.engines.microbatches import PackedStep
from megatron_lst.engines.sharded_checkpoint import ShardedCheckpoint
from megatron_lst.patching.row import Row
from megatron_lst.training import feed
from megatron_lst.training.checkpoint import folders, retention

_step, _open_loader = MegatronEngine.step, feed.open_loader


def _slow_step(self: MegatronEngine, rows: Sequence[Row] | PackedStep, lr: float, **options: Any) -> StepResult:
    time.sleep(float(os.environ.get("LST_TEST_SECONDS", "0")))
    while os.path.exists(os.environ.get("LST_TEST_HOLD", "")):
        time.sleep(0.1)
    return _step(self, rows, lr, **options)


class _SlowLoader:
    def __init__(self, loader: Any) -> None:
        self._loader, self.close = loader, loader.close

    def __next__(self) -> Any:
        time.sleep(0.2)
        return next(self._loader)


def _slow_loader(*arguments: Any) -> Any:
    loader = _open_loader(*arguments)
    return _SlowLoader(loader) if os.environ.get("LST_TEST_SLOW_RANK") == os.environ.get("RANK") else loader


SAVE_PHASES: dict[str, tuple[Any, str, int]] = {
    "folder": (folders, "begin", 1),
    "device copy": (sharded_checkpoint, "_to_host", 5),
    "file": (checkpoint_files._HashedStream, "save", 7),
    "end of the files": (checkpoint_files._HashedStream, "hash", 1),
    "joining of the lists": (ShardedCheckpoint, "seal", 1),
    "index": (sharded_checkpoint, "write_index", 1),
    "manifest": (folders, "write_json", 2),
    "rename": (folders, "note_written", 1),
    "marker": (folders, "_point_to", 2),
    "retention": (retention, "_remove", 1),
}
"""Where a save can end: what is called there, and at which call."""


def _kill_in(phase: str) -> None:
    owner, name, at = SAVE_PHASES[phase]
    plain, calls = getattr(owner, name), 0

    def killed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if os.path.exists(os.environ["LST_TEST_KILL_AFTER"]):
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return plain.fget(*arguments) if isinstance(plain, property) else plain(*arguments, **options)

    setattr(owner, name, property(killed) if isinstance(plain, property) else killed)


if __name__ == "__main__":
    if "LST_TEST_KILL" in os.environ:
        _kill_in(os.environ["LST_TEST_KILL"])
    MegatronEngine.step = _slow_step  # type: ignore[method-assign]
    feed.open_loader = _slow_loader  # type: ignore[assignment]
    main()
