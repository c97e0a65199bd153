"""Object stores, by pyarrow's file systems: objects opened, listed and written, and what goes wrong said as OSErrors.

Endpoint, region and credentials come from the environment, as other tools take them: S3_ENDPOINT_URL (which training
reads), AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, files of ~/.aws, the role of the
machine; without any the store is asked anonymously.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst_prep.places import StorePath
from megatron_lst.errors import UserError, of_missing_module

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

BLOCK = 1 << 22
"""Bytes of one request."""
_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "HTTP status 403", "HTTP status 401")
_SECONDS = {"connect_timeout": 10.0, "request_timeout": 60.0}


def _filesystem(path: StorePath) -> "FileSystem":
    """Raises UserError: pyarrow is not installed, or knows no such store."""
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    who = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_PROFILE", "")
    return _connected(path.scheme, path.bucket, endpoint, region, who)


@lru_cache(maxsize=64)
def _connected(scheme: str, bucket: str, endpoint: str, region: str, who: tuple[str, str]) -> "FileSystem":
    """Once a process. `who`: of other credentials it is another one."""
    try:
        from pyarrow import fs
    except ModuleNotFoundError as error:
        raise of_missing_module(error) or error from None
    try:
        if scheme == "gs":
            return fs.GcsFileSystem()
        if not region:
            region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
        return fs.S3FileSystem(endpoint_override=endpoint or None, region=region, **_SECONDS)
    except ImportError as error:
        raise UserError(f"{scheme}://{bucket}: this pyarrow has no such store ({error})") from None


@contextlib.contextmanager
def _faults(path: StorePath) -> Iterator[None]:
    """What the store says, with an error number: pyarrow gives none but for what is not there."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise  # of this machine
        said = str(error).split("; Details:")[0].strip()
        if "Not a regular file" in said:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
        if any(word in said for word in _REFUSED):
            raise PermissionError(errno.EACCES, f"access denied: {said}", str(path)) from None
        raise OSError(errno.EIO, said, str(path)) from None


class Object:
    """An object that is read at any place, by requests of what is asked for.

    Attributes:
        kind: (bytes, what changes when the object does).
        regular: it has so many bytes.

    Raises:
        OSError: it cannot be opened now; ESTALE: it changed since it was opened.
    """

    regular = True

    def __init__(self, path: StorePath) -> None:
        self._path = path
        with _faults(path):
            self._file = _filesystem(path).open_input_file(str(path.inside))
            self.kind = self._file.size(), _tag(self._file, path)

    def readinto(self, buffer: Any) -> int:
        with _faults(self._path):
            count = int(self._file.readinto(buffer))
        with contextlib.closing(Object(self._path)) as now:  # requests of one object may meet two of one name
            if now.kind != self.kind:
                raise OSError(errno.ESTALE, "changed while it was read", str(self._path))
        return count

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def close(self) -> None:
        self._file.close()


def _tag(file: Any, path: StorePath) -> str:
    about = file.metadata() or {}
    tag = about.get(b"ETag") or about.get("ETag")
    return str(tag or _filesystem(path).get_file_info(str(path.inside)).mtime_ns)


def look(path: StorePath) -> "FileInfo":
    """What there is: its `type` (NotFound, Directory, File), `size` and `mtime_ns`. Raises OSError."""
    with _faults(path):
        return _filesystem(path).get_file_info(str(path.inside))


def is_folder(found: "FileInfo") -> bool:
    return found.type.name == "Directory"


def is_object(found: "FileInfo") -> bool:
    return found.type.name == "File"


def listed(path: StorePath, recursive: bool = False) -> "list[FileInfo]":
    """What is in a folder, sorted by name; nothing, where there is none. Raises OSError."""
    from pyarrow.fs import FileSelector

    with _faults(path):
        selector = FileSelector(str(path.inside), allow_not_found=True, recursive=recursive)
        return sorted(_filesystem(path).get_file_info(selector), key=lambda found: found.path)


def send(file: Path, path: StorePath) -> None:
    """Write a file as an object; a killed one leaves none. Raises OSError."""
    with file.open("rb") as source, _faults(path), _filesystem(path).open_output_stream(str(path.inside)) as out:
        while block := source.read(BLOCK):
            out.write(block)


def delete(path: StorePath) -> None:
    """Raises OSError."""
    with _faults(path):
        _filesystem(path).delete_file(str(path.inside))
