"""A store that fails: errors wherever Python opens a file or lists a folder below it, or reads from there."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = (errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.ETIMEDOUT)
"""Error numbers of stores that are away."""

SHORT = -1
"""Instead of an error number: the read ends before the file does."""


class FaultyStore:
    """Counts what is done to files below some folders, and fails some of it.

    Attributes:
        seen: (what, path) of each event, in order: `open` to read, `write`, `list` and `read`.
        fails: whether the event of that number fails, and with what: an error number, SHORT or None.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._folders = [str(folder) + os.sep for folder in folders]
        self.seen: list[tuple[str, str]] = []
        self.fails: Callable[[int, str, str], int | None] = lambda *_: None
        self.on = False

    def watch(self, folder: Path) -> None:
        """Also everything below another folder."""
        self._folders.append(str(folder) + os.sep)

    def event(self, what: str, path: object) -> int | None:
        """SHORT, or None. Raises the OSError that is due."""
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not (self.on and str(name).startswith(tuple(self._folders))):
            return None
        self.seen.append((what, str(name)))
        number = self.fails(len(self.seen) - 1, what, str(name))
        if number in (None, SHORT):
            return number
        raise OSError(number, os.strerror(number), str(name))

    @contextmanager
    def working(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


STORES: list[FaultyStore] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "w" in str(mode)
        for store in STORES:
            store.event("write" if writes else "open", path)
    elif event in ("os.scandir", "os.listdir"):
        for store in STORES:
            store.event("list", arguments[0])


sys.addaudithook(_audit)


class FaultyFile:
    """An unbuffered file whose reads are events."""

    def __init__(self, file: Any, store: FaultyStore, path: Path) -> None:
        self._file, self._store, self._path = file, store, path

    def readinto(self, buffer: Any) -> int:
        short = self._store.event("read", self._path) == SHORT
        return 0 if short else int(self._file.readinto(buffer))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
