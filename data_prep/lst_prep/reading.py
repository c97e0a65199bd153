"""Where inputs are opened and folders listed, on this machine or in a store: "cannot be read now" is not "bad input".

A file that cannot be read now (it is away, EIO, ESTALE, EACCES, a time-out, fewer bytes than its size) is tried again
with pauses, then `CannotRead` is raised: the item of work fails without a receipt, and the next run does it. What is
gone for good is given up by name, and becomes a counted rejection. Whatever a decoder then says of the bytes is the
business of who decodes them.
"""

import contextlib
import copy
import errno
import fnmatch
import io
import os
import stat
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import xxhash

from lst_prep import stores
from lst_prep.config import ReadingConfig
from lst_prep.places import AnyPath, SamePath, StorePath, path_of, whole
from lst_prep.rejection import Rejection
from lst_prep.strings import printable
from megatron_lst.errors import LstError, UserError

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
        self._given_up = names | {whole(name) for name in names}
        self._patient = True
        self._sizes = {path: size for path, size in (sizes or {}).items() if self.is_given_up(path)}
        self._listed: dict[str, int] = {}
        self.tried = 0

    def without_patience(self) -> "Inputs":
        """The same, that counts for itself and tries everything once."""
        other = copy.copy(self)
        other._patient, other.tried = False, 0
        return other

    def is_given_up(self, *names: str | AnyPath) -> bool:
        """Whether one of these is given up: an id as it stands, a path however it is written."""
        if not self._given_up:
            return False
        return any(str(n) in self._given_up or whole(n) in self._given_up for n in names if str(n))

    def size(self, path: AnyPath) -> int:
        """Bytes of a file. Raises CannotRead."""
        if str(path) in self._sizes:
            return self._sizes[str(path)]
        if isinstance(path, Path):
            return self.retry(path, path.stat).st_size
        if str(path) not in self._listed:
            with self.open(path) as file:
                self._listed[str(path)] = left_of(file)[1]
        return self._listed[str(path)]

    def hash(self, path: AnyPath) -> str:
        """xxh128 of a file's bytes, as `file_hash`. Raises what `open` raises."""
        digest = xxhash.xxh3_128()
        with self.open(path) as file:
            while block := file.read(stores.BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def lost(self) -> list[AnyPath]:
        """Files that are given up and were listed once, there or not."""
        return [path_of(path) for path in self._sizes]

    @contextlib.contextmanager
    def local(self, name: str | AnyPath) -> Iterator[Path]:
        """A small file where a library can open it: itself, or a copy of an object for as long as it is needed.

        Raises:
            CannotRead: not now. UserErrors of what is done with the copy name the object.
        """
        path = path_of(name)
        if isinstance(path, Path):
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, path.name)
            copy.write_bytes(self.read_bytes(path))
            try:
                yield copy
            except UserError as error:
                raise UserError(str(error).replace(str(copy), str(path))) from error

    def open(self, path: str | AnyPath) -> io.BufferedReader:
        """The bytes of a file; each read is tried again, too. Does not keep the file in memory.

        Raises:
            CannotRead: not now; reads raise it, too.
            Rejection: given_up.
            OSError: there can be no file of that name (a folder, a name that is too long).
        """
        if self.is_given_up(path):
            raise Rejection("given_up", str(path))
        self.tried += 1
        found = path_of(path)
        raw = _Retrying(found, self)
        return io.BufferedReader(raw, 1 << 17 if isinstance(found, Path) else min(max(raw.size, 1 << 12), stores.BLOCK))

    def read_bytes(self, path: str | AnyPath) -> bytes:
        with self.open(path) as file:
            return file.read()

    def retry(self, path: str | AnyPath, action: Callable[[], Value]) -> Value:
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

    def entries(self, folder: str | AnyPath) -> list[tuple[str, bool]]:
        """(name, is it a folder or a link to one) of what is in a folder, sorted. Raises CannotRead."""
        place = path_of(folder)

        def found() -> list[tuple[str, bool]]:
            if isinstance(place, StorePath):
                there = stores.listed(place)
                self._listed |= {str(place / entry.base_name): entry.size for entry in there if stores.is_object(entry)}
                return [(entry.base_name, stores.is_folder(entry)) for entry in there]
            with os.scandir(place) as entries:
                return sorted((entry.name, entry.is_dir()) for entry in entries)

        return self.retry(place, found)

    def walk(self, root: SamePath, leave_out: Container[str] = ()) -> Iterator[SamePath]:
        """Every file under a folder, as `sorted` would order the paths.

        Links to folders are followed, but to those that are reached under another name, and round in circles. One
        folder's names are held at a time.

        Args:
            leave_out: names of folders that are not entered; neither are those that are given up.

        Raises:
            CannotRead: a folder that cannot be listed: what is in it is not lost silently.
        """
        if isinstance(root, StorePath):
            yield from cast(Iterator[SamePath], self._walk_store(root, leave_out))
        else:
            yield from cast(Iterator[SamePath], self._walk(str(root), leave_out, [os.path.realpath(str(root))]))

    def _walk_store(self, folder: StorePath, leave_out: Container[str]) -> Iterator[StorePath]:
        if self.is_given_up(folder):
            return
        for name, is_folder in self.entries(folder):
            if not is_folder:
                yield folder / name
            elif name not in leave_out:
                yield from self._walk_store(folder / name, leave_out)

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

    def expand(self, pattern: str, only_files: bool = False) -> list[AnyPath]:
        """Paths that a pattern names, sorted: `*`, `?`, `[a-z]`, and `**` for any folders, none included. Names that
        begin with a dot are not matched, as in a shell. Raises CannotRead: a folder on the way cannot be listed."""
        path = path_of(pattern)
        if isinstance(path, StorePath):
            found: list[tuple[AnyPath, bool]] = [(StorePath.of(f"{path.scheme}://{path.bucket}"), True)]
            parts = path.parts[2:]
        else:
            found, parts = [(Path(path.anchor or "."), True)], path.parts[1:] if path.anchor else path.parts
        for part in parts:
            found = [below for place, _ in found for below in self._expand(place, part)]
        return sorted({place for place, is_folder in found if not (only_files and is_folder)})

    def _expand(self, place: AnyPath, part: str) -> Iterator[tuple[AnyPath, bool]]:
        """(path, is it a folder)."""
        if part == "**":
            yield place, (is_here := self.is_there(place, folder=True))
            if is_here:
                for name, is_folder in self.entries(place):
                    link = isinstance(place, Path) and os.path.islink(place / name)
                    if is_folder and not name.startswith(".") and not link:
                        yield from self._expand(place / name, part)
        elif any(ch in part for ch in "*?["):
            if self.is_there(place, folder=True):
                for name, is_folder in self.entries(place):
                    if fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
                        yield place / name, is_folder
        elif self.is_there(place / part):
            yield place / part, self.is_there(place / part, folder=True)

    def is_there(self, path: AnyPath, folder: bool = False) -> bool:
        """Whether there is such a file or folder, or, with `folder`, such a folder. Raises CannotRead."""

        def look() -> bool:
            if isinstance(path, StorePath):
                there = stores.look(path)
                return stores.is_folder(there) or (stores.is_object(there) and not folder)
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return stat.S_ISDIR(found.st_mode) or not folder

        return self.retry(path, look)

    def is_file(self, path: AnyPath) -> bool:
        """Whether there is such a file. Raises CannotRead: a store does not say."""
        if isinstance(path, Path):
            return path.is_file()
        return self.retry(path, lambda: stores.is_object(stores.look(path)))


class _LocalFile:
    """A file of this machine; see `stores.Object`."""

    def __init__(self, path: Path) -> None:
        self._file: Any = path.open("rb", buffering=0)
        try:
            found = os.fstat(self._file.fileno())
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        except BaseException:
            self._file.close()
            raise
        self.regular = stat.S_ISREG(found.st_mode)
        self.kind = found.st_size, found.st_mtime_ns
        self.readinto, self.seek, self.close = self._file.readinto, self._file.seek, self._file.close


class _Retrying(io.RawIOBase):
    """A file that is opened again, at the same place, when a read fails."""

    def __init__(self, path: AnyPath, inputs: Inputs) -> None:
        self._path, self._inputs = path, inputs
        self._file: Any = None
        self._at = 0
        self._kind: tuple[int, int | str] | None = None
        inputs.retry(path, self._reopen)

    def _reopen(self) -> None:
        self._drop()
        file = _LocalFile(self._path) if isinstance(self._path, Path) else stores.Object(self._path)
        try:
            if self._kind not in (None, file.kind):
                raise OSError(errno.ESTALE, "changed while it was read", str(self._path))
            if self._at:
                file.seek(self._at)
        except BaseException:
            file.close()
            raise
        self._file, self._kind, self._regular = file, file.kind, file.regular

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
