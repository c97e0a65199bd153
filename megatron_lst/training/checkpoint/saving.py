"""Saving while training goes on: a small state machine that all ranks step through together.

start    the engine copies to the host; a thread of the writer makes the folder, threads of the others wait for it
writing  threads write and hash
sealed   the writer completes the folder and removes what retention lets go, in a thread too

The step waits for no file system: how far the ranks are travels with the step's own reduction (`numbers`).  A save that
fails leaves the previous checkpoint as it was, and is tried again after a later step, when there may be room.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
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
        flush: called before a checkpoint is complete, so that a resume finds the records of all steps before it.
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
        flush: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine, self._ranks, self._run, self._config_yaml = engine, ranks, run, config_yaml
        self._settings, self._tell, self._guard, self._flush = settings, tell, guard, flush
        self._failures = 0  # checkpoints in a row, all tries included
        self._tries = 0  # of the current one
        self._step: int | None = None  # of the save that is under way
        self._last_step = 0
        self._position: dict[str, Any] = {}
        self._kept = False
        self._folder: _Folder | None = None  # of the save that is under way
        self._completing: _Completing | None = None  # the second half of a save, on every rank

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
        self._folder = _Folder(self._make_folder if self._engine.is_writer else None)
        if not self._settings.asynchronous:
            self._folder.make()
            if self._failed(self._folder.problem()):
                return
            self._folder.open()
        problem: Exception | None = None
        files: dict[str, dict[str, Any]] = {}
        try:
            files = self._engine.save(
                self._temporary / "engine", asynchronous=self._settings.asynchronous, ready=self._folder.ready
            )
        except (OSError, RuntimeError) as error:
            problem = error
        if not self._failed(problem) and not self._settings.asynchronous:
            self._complete(lambda: files)
            self.wait()

    def _make_folder(self) -> None:
        self._guard()
        self._check_space()
        assert self._step is not None, "a save is under way"
        folders.begin(self._run, self._step)

    def numbers(self) -> tuple[int, int]:
        """Whether this rank has something under way, and whether it failed, as 1 or 0: to be summed over ranks."""
        if not self.busy:
            return 0, 0
        if self._completing is not None:
            return int(self._completing.running), 0
        assert self._folder is not None, "a save is under way"
        if not self._folder.opened:
            return int(self._folder.under_way), 0
        try:
            return int(not self._engine.finish_saves(wait=False)), 0
        except OSError:
            return 0, 1

    def poll(self, numbers: Sequence[float]) -> None:
        """Once a step: go on with what is ready. No communication where nothing is.

        Args:
            numbers: the sums of all ranks' `numbers`.
        """
        under_way, failed = numbers
        if self.busy and (failed or not under_way):
            self._advance()

    def wait(self) -> None:
        """Until nothing is under way."""
        while self.busy:
            self._advance()

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

    def _advance(self) -> None:
        """The next part of the save, waiting for the one before on all ranks."""
        assert self._folder is not None, "a save is under way"
        problem: Exception | None = None
        if not self._folder.opened:
            problem = self._folder.problem()
            refused = self._ranks.max(problem is not None) > 0
            self._folder.open(refused)
            if not refused:
                return
        if self._completing is None:
            try:
                rest = self._engine.seal_save()
            except (OSError, RuntimeError) as error:
                problem = problem or error
            if not self._failed(problem):
                self._complete(rest)
            return
        sentences = self._completing.result()
        if self._failed(self._completing.problem):
            return
        self._failures, self._tries, self._step, self._completing = 0, 0, None, None
        for sentence in sentences:
            self._tell("checkpoint", sentence)

    def _complete(self, rest: Callable[[], dict[str, dict[str, Any]]] | None) -> None:
        """Begin the last part; `rest` ends what the engine writes, on the writer."""
        if not self._engine.is_writer:
            self._completing = _Completing(None)
            return
        assert rest is not None and self._step is not None, "a save is under way, and this is the writer"
        temporary, step, kept, position = self._temporary, self._step, self._kept, self._position

        def complete() -> list[str]:
            self._guard()
            self._flush()
            files = rest()
            if kept:
                write_text(temporary / folders.KEEP, "the last one before the learning rate's decay\n")
            done = folders.finish(temporary, step, position, self._config_yaml, files)
            size = sum(entry["bytes"] for entry in files.values())
            sentences = [f"{done.path} is complete ({size / 1e6:.1f} MB)"]
            # The checkpoint is complete: nothing from here on can make it a failed one. Where the folder cannot be
            # listed, the next checkpoint tries again.
            with contextlib.suppress(OSError):
                settings = self._settings
                retain(self._run, settings.keep, keep_best=settings.keep_best, tell=sentences.append)
            return sentences

        self._completing = _Completing(complete)

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
        assert self._step is not None and self._folder is not None, "a save is under way"
        self._folder.open(refused=True)  # whoever still waits for it leaves
        self._last_step, self._step, self._completing = self._step, None, None
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


class _Folder:
    """The temporary folder of one save: the writer makes it, the others wait until they are told that it is there.

    Args:
        make: makes it; None where another rank does.
    """

    def __init__(self, make: Callable[[], None] | None) -> None:
        self._make = make
        self._error: Exception | None = None
        self._made, self._told = threading.Event(), threading.Event()
        self._refused = False
        if make is None:
            self._made.set()

    @property
    def under_way(self) -> bool:
        return not self._made.is_set()

    @property
    def opened(self) -> bool:
        """All ranks know how it went."""
        return self._told.is_set()

    def make(self) -> None:
        """On the writer: make it, once. Keeps what goes wrong for `problem`."""
        if self._make is None or self._made.is_set():
            return
        try:
            self._make()
            self._error = None
        except Exception as error:
            self._error = error
        self._made.set()

    def problem(self) -> OSError | None:
        """Waits until this rank is done.

        Raises:
            TrainingFault: this process may write no longer.
        """
        self._made.wait()
        if self._error is not None and not isinstance(self._error, OSError):
            raise self._error
        return self._error

    def open(self, refused: bool = False) -> None:
        """All ranks have heard how it went: they write, or leave it."""
        self._refused = refused
        self._told.set()

    def ready(self) -> None:
        """For `Engine.save`.

        Raises:
            OSError: it could not be made.
        """
        self.make()
        self._told.wait()
        if self._refused:
            raise OSError("the folder could not be made")


class _Completing:
    """Completes a folder in a thread; on ranks with nothing to complete it is done at once.

    Attributes:
        problem: the OSError that it ended with.
    """

    def __init__(self, action: Callable[[], list[str]] | None) -> None:
        self._done: list[str] = []
        self._error: BaseException | None = None
        self.problem: OSError | None = None

        def complete() -> None:
            try:
                if action is not None:
                    self._done = action()
            except OSError as error:
                self.problem = error
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=complete, name="checkpoint-complete", daemon=True)
        if action is not None:
            self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> list[str]:
        """What there is to say of the checkpoint, and of those that are removed.

        Raises:
            TrainingFault: this process may write no longer.
        """
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._done
