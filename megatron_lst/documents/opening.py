"""Opening a shard set: its manifest, index and sizes, read with care.

What a second try can mend is tried again: an error of a network file system, a copy that arrived damaged. What it
cannot mend is a sentence that names the file and the cure.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np

from megatron_lst.documents.codec import codec_of
from megatron_lst.documents.format import INDEX, KINDS, MANIFEST, SIZES, TokenizerInfo, file_hash, load_sizes
from megatron_lst.documents.schema import SCHEMA_VERSION
from megatron_lst.errors import DamagedDataError, UserError

LOG = logging.getLogger(__name__)

OF_NOW = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.ENOLINK, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN,
}  # fmt: skip
"""Errors of a file system that is away for a while."""
ATTEMPTS, FIRST_PAUSE = 4, 0.5
"""How often a file is tried, and the seconds before the second time; they double."""

_CURE = "take the file from a copy of the set, or run `lst prep shards` again"

Value = TypeVar("Value")


class Files(Protocol):
    """Where the files of a set come from, and who keeps the cache folder small. `LocalFiles` is the plain one."""

    @property
    def first_pause(self) -> float:
        """Seconds before a file is tried a second time; see `patiently`."""
        ...

    def fetch(self, name: str) -> Path:
        """Where a file of the set, named relative to it, lies on this machine. It may not exist."""
        ...

    def discard(self, name: str) -> bool:
        """Drop a copy that turned out damaged. True: `fetch` may bring a better one."""
        ...

    def used(self, path: Path) -> None:
        """A decompressed shard in the cache folder was made or opened."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """A set in a local folder."""

    folder: Path
    first_pause: float = FIRST_PAUSE

    def fetch(self, name: str) -> Path:
        return self.folder / name

    def discard(self, name: str) -> bool:
        return False

    def used(self, path: Path) -> None:
        pass


def patiently(action: Callable[[], Value], first_pause: float) -> Value:
    """What `action` gives; errors of a file system that is away are tried again, the last one is raised."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except OSError as error:
            if error.errno not in OF_NOW:
                raise
            LOG.warning("%s: %s; trying again", error.filename or "a file of a shard set", error.strerror)
        time.sleep(first_pause * 2**attempt)
    return action()


_CURES = {
    errno.ENOSPC: "free some space there, lower data.cache_gigabytes, or name another folder in data.cache",
    errno.EDQUOT: "free some space there, lower data.cache_gigabytes, or name another folder in data.cache",
    errno.EROFS: "name a folder that can be written in data.cache",
    errno.EACCES: "does it belong to somebody else? Name a folder of your own in data.cache",
    errno.EPERM: "does it belong to somebody else? Name a folder of your own in data.cache",
}


@contextlib.contextmanager
def cache_faults(folder: Path) -> Iterator[None]:
    """Around what writes into the cache folder: raises UserError where that cannot be written, with the cure."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CURES:
            raise
        where = error.filename or folder
        raise UserError(
            f"the cache folder {folder} cannot be written ({where}: {error.strerror}); {_CURES[error.errno]}"
        ) from error


def _why_no_set(path: Path) -> str:
    """What is wrong with a path that holds no manifest, for people; an address is only said to have none."""
    if "://" in str(path) or ":/" in str(path):
        return f"no {MANIFEST}: not a shard set, or its preparation did not finish"
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "a file; a shard set is a folder"
    inside = sorted(found.parent.name for found in path.glob(f"*/{MANIFEST}"))
    if inside:
        return f"a folder of shard sets; name those that you want: {', '.join(f'{path}/{name}' for name in inside)}"
    if any(path.iterdir()):
        return f"no {MANIFEST}: not a shard set, or its preparation did not finish (run the same command again)"
    return "an empty folder"


def read_manifest(path: str | Path, files: Files) -> dict[str, Any]:
    """A set's manifest, checked.

    Raises:
        UserError: there is none, or it cannot be read now.
        DamagedDataError: not JSON, of another schema version, or with keys that are missing or not known here.
    """
    where = f"{path}/{MANIFEST}"
    try:
        content = patiently(lambda: files.fetch(MANIFEST).read_bytes(), files.first_pause)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: {_why_no_set(Path(path))}") from error
    except OSError as error:
        raise UserError(
            f"{where}: cannot be read ({error.strerror}); is it readable for you, its store there?"
        ) from error
    try:
        manifest = json.loads(content)
    except ValueError as error:
        begins = content[:40].decode(errors="replace")
        raise DamagedDataError(f"{where}: not JSON ({error}); it begins with {begins!r}; {_CURE}") from error
    if not isinstance(manifest, dict):
        raise DamagedDataError(f"{where}: not an object; take it from a copy of the set")
    version = manifest.get("schema_version")
    if version not in range(1, SCHEMA_VERSION + 1):
        raise DamagedDataError(
            f"{path}: schema version {version!r}, this program knows 1 to {SCHEMA_VERSION}; prepare the data again "
            f"or use the release that wrote it"
        )
    _require(where, "", manifest, {"kind": str, "documents": int, "tokenizer": dict, "files": dict})
    if manifest["kind"] not in KINDS:
        raise DamagedDataError(f"{where}: kind is {manifest['kind']!r}, expected {', '.join(KINDS)}")
    _require(where, "files.", manifest["files"], {INDEX: str, SIZES: str})
    manifest.setdefault("codebook", None)
    _check_tokenizer(where, manifest["tokenizer"])
    book = manifest["codebook"]
    if book is not None:
        if not isinstance(book, dict):
            raise DamagedDataError(f"{where}: codebook is {book!r}; {_CURE}")
        _require(where, "codebook.", book, {"fingerprint": str})
    try:
        codec = codec_of(manifest)
    except UserError as error:
        raise DamagedDataError(f"{where}: {error}; {_CURE}") from error
    if manifest["kind"] == "speech" and codec is None:
        raise DamagedDataError(f"{where}: a set of speech that names no codec; {_CURE}")
    return manifest


def _require(where: str, prefix: str, value: dict[str, Any], keys: dict[str, type]) -> None:
    for key, kind in keys.items():
        if not isinstance(value.get(key), kind):
            what = f"lacks {prefix}{key!r}" if key not in value else f"{prefix}{key} is {value[key]!r}"
            raise DamagedDataError(
                f"{where}: {what}; take the file from a copy of the set, or run `lst prep shards` again"
            )


def _check_tokenizer(where: str, value: dict[str, Any]) -> None:
    fields = dataclasses.fields(TokenizerInfo)
    if unknown := set(value) - {field.name for field in fields}:
        raise DamagedDataError(
            f"{where}: tokenizer has the unknown key {min(unknown)!r}; was it written by a newer release? Use that "
            f"one, or take the key out if somebody added it"
        )
    _require(where, "tokenizer.", value, {"fingerprint": str, "size": int, "bos": int, "eos": int})


def read_index(
    path: str | Path, manifest: dict[str, Any], files: Files
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The entries of a set's shards, and the columns of its sizes, both as the manifest has their hashes.

    Raises:
        DamagedDataError: missing or altered, in a copy that was fetched again, too; names the file and the cure.
    """
    _inside(path, manifest["files"])
    for name, expected in manifest["files"].items():
        _verified(path, name, expected, files)
    try:
        index = json.loads(files.fetch(INDEX).read_bytes())["shards"]
        sizes = load_sizes(files.fetch(SIZES))
        _inside(path, (part["basename"] for s in index for part in (s["raw_data"], s["zip_data"]) if part))
        total = sum(shard["samples"] for shard in index)
    except (ValueError, KeyError, TypeError) as error:  # hashed, so it was written like this
        raise DamagedDataError(
            f"{path}: {INDEX} or {SIZES} is not what this program writes ({type(error).__name__}: {error})"
        ) from error
    count, documents = len(sizes["raw_tokens"]), manifest["documents"]
    if not total == count == documents:
        raise DamagedDataError(f"{path}: index counts {total} documents, sizes {count}, manifest {documents}")
    return index, sizes


def _verified(path: str | Path, name: str, expected: str, files: Files) -> None:
    for again in (True, False):
        try:
            found = patiently(lambda: file_hash(files.fetch(name)), files.first_pause)
        except FileNotFoundError:
            fault = "missing"
        except OSError as error:
            raise UserError(f"{path}/{name}: cannot be read ({error.strerror})") from error
        else:
            if found == expected:
                return
            fault = f"hash {found}, the manifest says {expected}"
        if not (again and files.discard(name)):
            break
    raise DamagedDataError(f"{path}/{name}: {fault}; {_CURE}")


def _inside(path: str | Path, names: Iterable[str]) -> None:
    """Refuse names that lead out of a set's folder: a remote set must not choose where its files are written."""
    for name in names:
        parts = PurePosixPath(name)
        if not name or parts.is_absolute() or ".." in parts.parts:
            raise DamagedDataError(f"{path}: names a file outside the set, {name!r}; this program writes none")
