"""Saving while training goes on: a small state machine that all ranks step through together.

start -> the engine writes (perhaps in the background) -> every rank hashes its share in a thread -> the writer
finishes the folder.  A save that fails leaves the previous checkpoint as it was, and is tried again after a later
step, when there may be room.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_lst.config.schema import CheckpointConfig
from megatron_lst.engines.base import Engine
from megatron_lst.errors import TrainingFault
from megatron_lst.files import write_text
from megatron_lst.training.checkpoint import folders
from megatron_lst.training.checkpoint.retention import retain
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.resilience.events import EventKind

RETRY_SECONDS = 2.0
"""Pause before the last checkpoint of a run is tried again."""


class CheckpointSaver:
    """Writes checkpoints of one run; every method is collective.

    Args:
        tell: receives kind and message of each thing that happens.
        guard: called before each write; raises where this process may no longer write.
    """

    def __init__(
        self,
        engine: Engine,
        ranks: Ranks,
        run: Path,
        config_yaml: str,
        settings: CheckpointConfig,
        tell: Callable[[EventKind, str], None],
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._ranks, self._run, self._config_yaml = engine, ranks, run, config_yaml
        self._settings, self._tell, self._guard = settings, tell, guard
        self._failures = 0  # checkpoints in a row, all tries included
        self._tries = 0  # of the current one
        self._step: int | None = None  # of the save that is under way
        self._last_step = 0
        self._position: dict[str, Any] = {}
        self._kept = False
        self._hashing: threading.Thread | None = None
        self._files: dict[str, dict[str, Any]] = {}
        self._hash_error: OSError | None = None

    @property
    def busy(self) -> bool:
        """A save is under way; the same on every rank."""
        return self._step is not None

    @property
    def retry_due(self) -> bool:
        """The last save failed and has tries left; the same on every rank."""
        return not self.busy and self._tries > 0

    @property
    def _temporary(self) -> Path:
        assert self._step is not None, "no save is under way"
        return folders.checkpoint_root(self._run) / f"{folders.folder_name(self._step)}.tmp"

    def start(self, step: int, position: dict[str, Any], *, kept: bool = False) -> None:
        """Begin a checkpoint of the state after `step`; a previous one is finished first.

        Args:
            position: what goes into position.json; only the writer's is used.
            kept: retention leaves it alone for good.

        Raises:
            TrainingFault: saves failed too often in a row.
        """
        self.wait()
        self._step, self._position, self._kept = step, position, kept
        problem: Exception | None = None
        self._guard()
        try:
            if self._engine.is_writer:
                self._check_space()
                folders.begin(self._run, step)
        except OSError as error:
            problem = error
        if self._failed(problem):
            return
        try:
            self._engine.save(self._temporary / "engine", asynchronous=self._settings.asynchronous)
        except (OSError, RuntimeError) as error:
            problem = error
        if not self._failed(problem) and not self._settings.asynchronous:
            self.wait()

    def poll(self) -> None:
        """Once a step: finish what is ready. Costs nothing when no save is under way."""
        if self.busy:
            self._advance(wait=False)

    def wait(self) -> None:
        """Until nothing is under way."""
        while self.busy:
            self._advance(wait=True)

    def finish(self) -> None:
        """Until the last checkpoint stands; the run's end has no later step that could try again.

        Raises:
            TrainingFault: it could not be written.
        """
        self.wait()
        while self.retry_due:
            time.sleep(RETRY_SECONDS)
            self.start(self._last_step, self._position, kept=self._kept)
            self.wait()
        if self._failures:
            raise TrainingFault(f"the last checkpoint could not be written to {folders.checkpoint_root(self._run)}")

    def _advance(self, wait: bool) -> None:
        problem: Exception | None = None
        if self._hashing is None:
            try:
                if not self._engine.finish_saves(wait=wait):
                    return
            except (OSError, RuntimeError) as error:
                problem = error
            if self._failed(problem):
                return
            self._hash_error = None
            self._hashing = threading.Thread(target=self._hash, name="checkpoint-hash", daemon=True)
            self._hashing.start()
        if wait:
            self._hashing.join()
        if not self._ranks.all(not self._hashing.is_alive()):
            return
        self._hashing = None
        if self._failed(self._hash_error):
            return
        parts = self._ranks.gather_objects(self._files)
        done: folders.Checkpoint | None = None
        try:
            if self._engine.is_writer:
                self._guard()
                assert parts is not None, "the writer is rank 0"
                assert self._step is not None, "a save is under way"
                if self._kept:
                    write_text(self._temporary / folders.KEEP, "the last one before the learning rate's decay\n")
                done = folders.finish(self._temporary, self._step, self._position, self._config_yaml, parts)
        except OSError as error:
            problem = error
        if self._failed(problem):
            return
        self._failures, self._tries, self._step = 0, 0, None
        if done is not None:
            self._tell_and_retain(done)

    def _tell_and_retain(self, done: folders.Checkpoint) -> None:
        """The checkpoint is complete: nothing from here on can make it a failed one."""
        self._tell("checkpoint", f"{done.path} is complete ({done.size() / 1e6:.1f} MB)")
        settings = self._settings
        with contextlib.suppress(OSError):  # the folder cannot be listed: the next checkpoint tries again
            retain(
                self._run,
                settings.keep,
                keep_best=settings.keep_best,
                tell=lambda sentence: self._tell("checkpoint", sentence),
            )

    def _hash(self) -> None:
        try:
            folder = self._temporary / "engine"
            self._files = folders.describe_files(folder, self._ranks.rank, self._ranks.world_size)
        except OSError as error:
            self._hash_error = error

    def _check_space(self) -> None:
        """Refuse early when the disk has less room than the last checkpoint took: a half-written one helps nobody."""
        root = folders.checkpoint_root(self._run)
        root.mkdir(parents=True, exist_ok=True)
        found = folders.complete_checkpoints(self._run)
        if found and (free := shutil.disk_usage(root).free) < found[-1].size():
            raise OSError(
                f"{root} has {free / 1e6:.1f} MB free, the last checkpoint took {found[-1].size() / 1e6:.1f} MB"
            )

    def _failed(self, problem: Exception | None) -> bool:
        """Agree on whether this save failed anywhere; if so, clean up and count."""
        if not self._ranks.max(problem is not None):
            return False
        temporary = self._temporary
        assert self._step is not None, "a save is under way"
        self._last_step, self._step, self._hashing = self._step, None, None
        self._tries += 1
        if problem is not None:
            of = f"try {self._tries} of {self._settings.retries + 1}"
            self._tell("checkpoint_failed", f"step {self._last_step}, {of}: {problem!r}; the previous one stays good")
        self._ranks.barrier()
        if self._engine.is_writer:
            folders.discard(temporary)
        if self._tries > self._settings.retries:
            self._tries = 0
            self._failures += 1
        if self._failures > self._settings.max_failures:
            raise TrainingFault(
                f"{self._failures} checkpoints in a row could not be written to {temporary.parent} "
                f"(checkpoint.max_failures={self._settings.max_failures}); free some space or point run.dir elsewhere"
            )
        return True
