"""Where inputs are opened and folders listed: "cannot be read now" is not "bad input".

A file that cannot be read now (it is away, EIO, ESTALE, EACCES, a time-out, fewer bytes than its size) is tried again
with pauses, then `CannotRead` is raised: the item of work fails without a receipt, and the next run does it. What is
gone for good is given up by name, and becomes a counted rejection. Whatever a decoder then says of the bytes is the
business of who decodes them.
"""

import contextlib
import errno
import fnmatch
import io
import os
import stat
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lst_prep.config import ReadingConfig
from lst_prep.rejection import Rejection
from lst_prep.strings import printable
from megatron_lst.errors import LstError

_BAD_NAMES = {errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ}
"""What no waiting changes: there can be no file of that name. Every other error number is of now."""

Value = TypeVar("Value")


class CannotRead(LstError):
    """Inputs that cannot be read now. Not an OSError, so that nobody takes it for bad input.

    Attributes:
        files: {path: why}.
        tried: files that the item of work opened or tried to open, for the share that may fail.
    """

    exit_code = 4

    def __init__(self, files: Mapping[str, str], tried: int = 1) -> None:
        self.files, self.tried = dict(files), tried
        super().__init__(listed(self.files) + "; run the same command again when it can, or give it up by name")

    def __reduce__(self) -> tuple[type["CannotRead"], tuple[dict[str, str], int]]:
        return CannotRead, (self.files, self.tried)


def listed(files: Mapping[str, str], most: int = 5) -> str:
    """The first few files, and why each cannot be read."""
    shown = [f"{printable(path)}: cannot be read now ({why})" for path, why in list(files.items())[:most]]
    return "; ".join(shown) + (f"; and {len(files) - most} more" if len(files) > most else "")


def is_of_now(error: OSError) -> bool:
    """Whether waiting may mend it. Decoders raise OSErrors without a number for bad bytes (gzip, bz2)."""
    if error.errno is None:
        return isinstance(error, TimeoutError | ConnectionError)
    return error.errno not in _BAD_NAMES


class Inputs:
    """Opens the inputs of one item of work (or of one command).

    Only the first file that cannot be read is waited for: behind it the others of the item get one try each.

    Args:
        config: how often, and with what pauses.
        given_up: files and ids that are given up by name.
        sizes: bytes of files as they were listed once: one of them that is given up and gone still has its place among
            the items of work.

    Attributes:
        tried: files opened, or tried.
    """

    def __init__(
        self,
        config: ReadingConfig | None = None,
        given_up: Iterable[str] = (),
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self._config = config or ReadingConfig()
        names = frozenset(given_up)
        self._given_up = names | {os.path.abspath(name) for name in names}
        self._patient = True
        self._sizes = {path: size for path, size in (sizes or {}).items() if self.is_given_up(path)}
        self.tried = 0

    def is_given_up(self, *names: str | Path) -> bool:
        """Whether one of these is given up: an id as it stands, a path however it is written."""
        if not self._given_up:
            return False
        return any(str(n) in self._given_up or os.path.abspath(n) in self._given_up for n in names if str(n))

    def size(self, path: Path) -> int:
        """Bytes of a file. Raises CannotRead."""
        if str(path) in self._sizes:
            return self._sizes[str(path)]
        return self.retry(path, path.stat).st_size

    def lost(self) -> list[Path]:
        """Files that are given up and were listed once, there or not."""
        return [Path(path) for path in self._sizes]

    def open(self, path: str | Path) -> io.BufferedReader:
        """The bytes of a file; each read is tried again, too. Does not keep the file in memory.

        Raises:
            CannotRead: not now; reads raise it, too.
            Rejection: given_up.
            OSError: there can be no file of that name (a folder, a name that is too long).
        """
        if self.is_given_up(path):
            raise Rejection("given_up", str(path))
        self.tried += 1
        return io.BufferedReader(_Retrying(Path(path), self), 1 << 17)

    def read_bytes(self, path: str | Path) -> bytes:
        with self.open(path) as file:
            return file.read()

    def retry(self, path: str | Path, action: Callable[[], Value]) -> Value:
        """What `action` gives; OSErrors of now are tried again.

        Raises:
            CannotRead: it did not in any attempt.
        """
        attempts = self._config.attempts if self._patient else 1
        for attempt in range(attempts):
            try:
                return action()
            except OSError as error:
                if not is_of_now(error):
                    raise
                why = error.strerror or str(error) or type(error).__name__
            if attempt + 1 < attempts:
                time.sleep(self._config.pause_seconds * 2**attempt)
        self._patient = False
        raise CannotRead({str(path): why}, max(self.tried, 1))

    def entries(self, folder: str | Path) -> list[tuple[str, bool]]:
        """(name, is it a folder or a link to one) of what is in a folder, sorted. Raises CannotRead."""

        def found() -> list[tuple[str, bool]]:
            with os.scandir(folder) as entries:
                return sorted((entry.name, entry.is_dir()) for entry in entries)

        return self.retry(folder, found)

    def walk(self, root: str | Path, leave_out: Container[str] = ()) -> Iterator[Path]:
        """Every file under a folder, as `sorted` would order the paths.

        Links to folders are followed, but to those that are reached under another name, and round in circles. One
        folder's names are held at a time.

        Args:
            leave_out: names of folders that are not entered; neither are those that are given up.

        Raises:
            CannotRead: a folder that cannot be listed: what is in it is not lost silently.
        """
        yield from self._walk(str(root), leave_out, [os.path.realpath(root)])

    def _walk(self, folder: str, leave_out: Container[str], reached: list[str]) -> Iterator[Path]:
        if self.is_given_up(folder):
            return
        for name, is_folder in self.entries(folder):
            path = os.path.join(folder, name)
            if not is_folder:
                yield Path(path)
            elif name not in leave_out:
                if os.path.islink(path):
                    there = os.path.realpath(path)
                    if any(os.path.commonpath([there, other]) == other for other in reached):
                        continue
                    reached.append(there)
                yield from self._walk(path, leave_out, reached)

    def expand(self, pattern: str) -> list[Path]:
        """Paths that a pattern names, sorted: `*`, `?`, `[a-z]`, and `**` for any folders, none included. Names that
        begin with a dot are not matched, as in a shell. Raises CannotRead: a folder on the way cannot be listed."""
        path = Path(pattern)
        found = [Path(path.anchor or ".")]
        parts = path.parts[1:] if path.anchor else path.parts
        for part in parts:
            found = [below for place in found for below in self._expand(place, part)]
        return sorted(set(found))

    def _expand(self, place: Path, part: str) -> Iterator[Path]:
        if part == "**":
            yield place
            if self.is_there(place, folder=True):
                for name, is_folder in self.entries(place):
                    if is_folder and not name.startswith(".") and not os.path.islink(place / name):
                        yield from self._expand(place / name, part)
        elif any(ch in part for ch in "*?["):
            if self.is_there(place, folder=True):
                for name, _ in self.entries(place):
                    if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
                        yield place / name
        elif self.is_there(place / part):
            yield place / part

    def is_there(self, path: Path, folder: bool = False) -> bool:
        """Whether there is such a file or folder, or, with `folder`, such a folder. Raises CannotRead."""

        def look() -> bool:
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return stat.S_ISDIR(found.st_mode) or not folder

        return self.retry(path, look)


class _Retrying(io.RawIOBase):
    """A file that is opened again, at the same place, when a read fails."""

    def __init__(self, path: Path, inputs: Inputs) -> None:
        self._path, self._inputs = path, inputs
        self._file: Any = None
        self._at = 0
        self._kind: tuple[int, int] | None = None
        inputs.retry(path, self._reopen)

    def _reopen(self) -> None:
        self._drop()
        file = self._path.open("rb", buffering=0)
        try:
            found = os.fstat(file.fileno())
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._path))
            self._regular = stat.S_ISREG(found.st_mode)
            kind = found.st_size, found.st_mtime_ns
            if self._kind not in (None, kind):
                raise OSError(errno.ESTALE, "changed while it was read", str(self._path))
            if self._at:
                file.seek(self._at)
        except BaseException:
            file.close()
            raise
        self._file, self._kind = file, kind

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # of a store that is away
                file.close()

    def readinto(self, buffer: Any) -> int:
        count = self._inputs.retry(self._path, lambda: self._read(buffer))
        self._at += count
        return count

    def _read(self, buffer: Any) -> int:
        if self._file is None:
            self._reopen()
        try:
            count = int(self._file.readinto(buffer) or 0)
            if not count and len(buffer) and self._regular and self._at < self.size:
                raise OSError(errno.EIO, f"ends after {self._at} of {self.size} bytes", str(self._path))
        except OSError:
            self._drop()
            raise
        return count

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        assert self._kind is not None, "set when it is opened"
        return self._kind[0]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self._path}: no place {base + offset} in a file")
        self._at = base + offset
        self._inputs.retry(self._path, self._reopen if self._file is None else lambda: self._file.seek(self._at))
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._drop()
        super().close()


def left_of(file: io.BufferedReader) -> tuple[int, int]:
    """(bytes not read, bytes) of a file that `Inputs.open` gave, closed or not."""
    raw = file.raw
    assert isinstance(raw, _Retrying), "from Inputs.open"
    return raw.size - min(raw.tell(), raw.size), raw.size
