"""What this process does to files, groups and other ranks, counted as it happens: the same on real ranks and simulated.

Files are those under some folders: an audit hook sees what is opened and listed, `os.stat` is wrapped. Messages are the
collectives that the trainer makes on the host, collectives of objects, and operations on the ranks' store.
"""

import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

START, FIRST_BATCH, STEP, SAVE, RESUME, END, RECORD = PHASES = (
    "start",
    "first batch",
    "step",
    "save",
    "resume",
    "end",
    "record",
)
"""`record`: lines for metrics.jsonl and events.log, written by a thread at any time."""
_OBJECTS = ("gather_object", "broadcast_object_list", "all_gather_object", "scatter_object_list")
_TENSORS = ("all_reduce", "all_gather", "gather", "broadcast", "barrier", "all_to_all_single")
_STORE = ("get", "set", "add", "check", "multi_get", "wait", "delete_key")
_HOST = ("megatron_lst.training.ranks",)
_ROWS = "megatron_lst.training.balancing"
_UNSEEN = ("watchdog", "run-lock")
"""Threads that look at the run folder every few seconds, however long a job takes."""


class Counts:
    """What was counted, by phase.

    Attributes:
        files: phase -> how often files and folders were "opened", "listed" and looked at ("stated").
        messages: phase -> "collectives" of the host and of objects; "exchanges" of rows between builders,
            made ahead of the step; operations on the ranks' "store".
        groups: sizes of the process groups made.
        written: files that were opened to be written, by their last name.
    """

    def __init__(self) -> None:
        self.files: dict[str, Counter[str]] = defaultdict(Counter)
        self.messages: dict[str, Counter[str]] = defaultdict(Counter)
        self.groups: list[int] = []
        self.written: dict[str, None] = {}
        self.phase = START
        self._silent = threading.local()

    def clear(self) -> None:
        """Forget what was counted."""
        for found in (self.files, self.messages, self.groups, self.written):
            found.clear()  # type: ignore[attr-defined]

    def at(self, phase: str) -> None:
        """What follows belongs to a phase."""
        self.phase = phase

    @property
    def now(self) -> str:
        return RECORD if threading.current_thread().name == "run-folder" else self.phase

    @property
    def silent(self) -> bool:
        return getattr(self._silent, "on", False) or threading.current_thread().name in _UNSEEN

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What this thread does within it is another rank's."""
        before = getattr(self._silent, "on", False)
        self._silent.on = True
        try:
            yield
        finally:
            self._silent.on = before

    def of(self, phase: str) -> dict[str, int]:
        """Counts of a phase: the six numbers of `files` and `messages`."""
        files, messages = self.files[phase], self.messages[phase]
        return {
            "opened": files["opened"],
            "listed": files["listed"],
            "stated": files["stated"],
            "collectives": messages["collectives"],
            "exchanges": messages["exchanges"],
            "store": messages["store"],
        }


class _Files:
    """An audit hook stays for good, so there is one."""

    counts: Counts | None = None
    folders: tuple[str, ...] = ()
    _hooked = False

    @classmethod
    def hook(cls) -> None:
        if not cls._hooked:
            sys.addaudithook(cls._hear)
            cls._hooked = True

    @classmethod
    def _hear(cls, event: str, arguments: Any) -> None:
        if cls.counts is None or event not in ("open", "os.listdir", "os.scandir", "os.rename"):
            return
        path, counts = str(arguments[0]), cls.counts
        if not path.startswith(cls.folders):
            return
        if event == "os.rename":
            to = str(arguments[1])
            for name in [n for n in counts.written if n == path or n.startswith(path + os.sep)]:
                del counts.written[name]
                counts.written[to + name[len(path) :]] = None
            return
        if counts.silent:
            return
        counts.files[counts.now]["opened" if event == "open" else "listed"] += 1
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            counts.written[path] = None

    @classmethod
    def stat(cls, path: Any) -> None:
        counts = cls.counts
        if counts is None or counts.silent or not isinstance(path, str | Path):
            return
        if str(path).startswith(cls.folders):
            counts.files[counts.now]["stated"] += 1


@contextmanager
def counting(counts: Counts, folders: Sequence[Path]) -> Iterator[None]:
    """Count what this process does within it.

    Args:
        folders: files elsewhere are not counted.
    """
    _Files.hook()
    _Files.folders = tuple(map(str, folders))
    with ExitStack() as patches:

        def wrap(owner: Any, name: str, heard: Any) -> None:
            plain = getattr(owner, name)

            def counted(*arguments: Any, **options: Any) -> Any:
                if not counts.silent:
                    heard(*arguments, **options)
                with counts.uncounted() if owner is not os else ExitStack():
                    return plain(*arguments, **options)

            patches.enter_context(patch.object(owner, name, counted))

        def message(kind: str) -> Any:
            return lambda *_, **__: counts.messages[counts.now].update([kind])

        def collective(*_: Any, **__: Any) -> None:
            caller = sys._getframe(2).f_globals["__name__"]
            if caller in _HOST:
                counts.messages[counts.now]["collectives"] += 1
            elif caller == _ROWS:
                counts.messages[counts.now]["exchanges"] += 1

        def group(ranks: Any = None, *_: Any, **__: Any) -> None:
            counts.groups.append(dist.get_world_size() if ranks is None else len(ranks))

        for name in ("stat", "lstat"):
            wrap(os, name, lambda path, *_, **__: _Files.stat(path))
        for name in _OBJECTS:
            wrap(dist, name, message("collectives"))
        for name in _TENSORS:
            wrap(dist, name, collective)
        for name in _STORE:
            wrap(dist.Store, name, message("store"))
        wrap(dist, "new_group", group)
        _Files.counts = counts
        try:
            yield
        finally:
            _Files.counts = None


@contextmanager
def phases_of_training(counts: Counts) -> Iterator[None]:
    """Within it a call of `trainer.train` says in which phase it is."""
    from megatron_lst.training import trainer

    with ExitStack() as patches:

        def mark(owner: Any, name: str, before: str, after: str | None) -> None:
            plain = getattr(owner, name)

            def marked(*arguments: Any, **options: Any) -> Any:
                counts.at(before)
                result = plain(*arguments, **options)
                if after is not None:
                    counts.at(after)
                return result

            patches.enter_context(patch.object(owner, name, marked))

        mark(trainer.RowFeed, "__init__", FIRST_BATCH, None)
        mark(trainer._Run, "_position", SAVE, None)
        mark(trainer.CheckpointSaver, "start", SAVE, STEP)
        mark(trainer.CheckpointSaver, "finish", END, None)
        mark(trainer._Run, "_load", RESUME, START)
        next_of = trainer.RowFeed.__next__

        def next_batch(self: Any) -> Any:
            made = next_of(self)
            counts.at(STEP)
            return made

        patches.enter_context(patch.object(trainer.RowFeed, "__next__", next_batch))
        yield
