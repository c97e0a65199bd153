"""Shard sets that lie elsewhere (S3, Google Cloud, Azure, any fsspec address), and the cache folder on this machine.

One cache folder serves every process of a node.  It holds downloaded shards and decompressed ones, each set in a
folder named after its content, and keeps to a limit by dropping what was used longest ago.  Files appear by renaming,
so that nobody ever sees half of one; a file that is dropped while a process has it mapped stays readable to it.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from megatron_lst.documents.format import INDEX, MANIFEST, SIZES
from megatron_lst.documents.mds import cloud_downloader
from megatron_lst.documents.opening import FIRST_PAUSE, cache_faults
from megatron_lst.documents.shards import MEMORY_BUDGET, LocalFiles, ShardSet
from megatron_lst.errors import DamagedDataError, TrainingFault, UserError

LOG = logging.getLogger(__name__)
STREAMING_SCHEMES = ("s3", "gs", "azure", "azure-dl", "oci", "hf", "dbfs", "sftp")
"""Addresses that MosaicML Streaming's downloader serves; http(s) needs nothing, every other goes to fsspec."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
"""Seconds between attempts to download, doubling."""
MANIFEST_ATTEMPTS = 3
"""How often a manifest is fetched that arrives as something else."""
ANSWER_SECONDS = 60.0
"""How long one request may stay without an answer."""
KEPT = (MANIFEST, INDEX, SIZES)


def is_remote(address: str) -> bool:
    """Whether an address has a scheme, such as s3://bucket/set."""
    return "://" in address


class CacheFolder:
    """A folder that stays below a limit."""

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        self.root = root
        self._limit = limit_bytes

    def used(self, path: Path) -> None:
        """Remember that a file was used just now, and make room if there is too much."""
        with contextlib.suppress(OSError):
            os.utime(path)
        self.trim(keep=path)

    def trim(self, keep: Path | None = None) -> None:
        """Drop the files that were used longest ago until the limit holds; `keep` and the sets' indices stay."""
        if self._limit is None:
            return
        with self.lock("trim"):
            files = []
            for path in self.root.glob("*/**/*"):
                if path.name not in KEPT and path.suffix != ".tmp":
                    with contextlib.suppress(OSError):
                        status = path.stat()
                        files.append((status.st_mtime, status.st_size, path))
            files = [f for f in files if f[2].is_file()]
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files, key=lambda f: f[0]):
                if total <= self._limit:
                    return
                if path != keep:
                    with contextlib.suppress(PermissionError):  # somebody else's
                        path.unlink(missing_ok=True)
                        total -= size

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold off other processes of this node. Where the file system knows no locks, nothing is held off: that only
        costs a second download."""
        folder = self.root / ".locks"
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # such as in a cache that somebody else made
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / xxhash.xxh3_64_hexdigest(name)[:2]
                writable = not path.exists() or os.access(path, os.W_OK)
                file = held.enter_context(path.open("a" if writable else "r"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class RemoteFiles:
    """The files of one remote set, downloaded into the cache folder when they are first needed."""

    first_pause = FIRST_PAUSE

    def __init__(self, address: str, cache: CacheFolder, patience: float) -> None:
        """
        Args:
            patience: seconds to go on trying when the remote does not answer or fails.

        Raises:
            UserError: there is no shard set at that address.
        """
        self._address, self._cache, self._patience = address.rstrip("/"), cache, patience
        arriving = cache.root / f"manifest-{os.getpid()}-{time.monotonic_ns()}.tmp"
        try:
            with cache_faults(cache.root):
                cache.root.mkdir(parents=True, exist_ok=True)
                self._fetch_manifest(arriving)
                self.folder = content_folder(cache.root, arriving, self._address)
                self.folder.mkdir(parents=True, exist_ok=True)
                os.replace(arriving, self.folder / MANIFEST)
        finally:
            with contextlib.suppress(OSError):
                arriving.unlink(missing_ok=True)

    def _fetch_manifest(self, arriving: Path) -> None:
        """Download manifest.json; what is not JSON (the page of a proxy) is fetched again."""
        address, wait = f"{self._address}/{MANIFEST}", FIRST_WAIT
        for attempt in range(MANIFEST_ATTEMPTS):
            try:
                download(address, arriving, self._patience)
            except DamagedDataError:
                raise UserError(
                    f"{self._address}: no {MANIFEST}: not a shard set, or its preparation did not finish"
                ) from None
            content = arriving.read_bytes()
            try:
                json.loads(content)
                return
            except ValueError as error:
                begins = content[:60].decode(errors="replace")
                fault = f"{address}: not JSON ({error}); what arrived begins with {begins!r}"
            if attempt + 1 < MANIFEST_ATTEMPTS:
                LOG.warning("%s; fetching it again in %g s", fault, wait)
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        raise DamagedDataError(f"{fault}. Is there a proxy or a page to log in to between? Else upload the set again")

    def fetch(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            with self._cache.lock(str(path)), cache_faults(self._cache.root):
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    download(f"{self._address}/{name}", path, self._patience)
            self._cache.trim(keep=path)
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def discard(self, name: str) -> bool:
        LOG.warning("%s/%s: the copy in %s was damaged or dropped; fetching it again", self._address, name, self.folder)
        with cache_faults(self._cache.root):
            (self.folder / name).unlink(missing_ok=True)
        return True

    def used(self, path: Path) -> None:
        self._cache.used(path)


class CachedFiles(LocalFiles):
    """A local set whose decompressed shards lie in the cache folder."""

    def __init__(self, folder: Path, cache: CacheFolder) -> None:
        super().__init__(folder)
        object.__setattr__(self, "_cache", cache)

    def used(self, path: Path) -> None:
        self._cache.used(path)  # type: ignore[attr-defined]


def content_folder(root: Path, manifest: Path, address: str) -> Path:
    """Where a set's files lie in a cache folder: named after the set, for people, and its content, so that a set that
    is prepared anew at the same address never meets its old files."""
    digest = xxhash.xxh3_64_hexdigest(manifest.read_bytes())
    name = urllib.parse.urlparse(address).path.rstrip("/").rpartition("/")[2]
    return root / f"{name or 'set'}-{digest}"


def open_set(
    address: str,
    kind: str,
    cache: CacheFolder,
    patience: float,
    always_cache: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> ShardSet:
    """Open a local or remote shard set.

    Decompressed shards of remote sets, and of local ones of more than `memory_budget` bytes, lie in the cache folder;
    those of a small local set are kept in memory unless `always_cache`.

    Raises:
        UserError: there is none, or of another kind.
        DamagedDataError: index or sizes are damaged.
        TrainingFault: the remote did not answer for `patience` seconds.
    """
    if is_remote(address):
        files = RemoteFiles(address, cache, patience)
        return ShardSet.open(address, kind=kind, cache=files.folder, files=files)
    shards = ShardSet.open(address, kind=kind)
    if not always_cache and shards.decompressed_bytes <= memory_budget:
        return shards
    folder = content_folder(cache.root, Path(address) / MANIFEST, address)
    return ShardSet.open(address, kind=kind, cache=folder, files=CachedFiles(Path(address), cache))


def download(address: str, path: Path, patience: float) -> None:
    """Bring one file here, trying again while the remote fails, for at most `patience` seconds.

    Raises:
        DamagedDataError: it is not there.
        UserError: the client for such addresses is not installed, or refuses the credentials.
        OSError: this machine cannot write the file; see `cache_faults`.
        TrainingFault: it still failed after `patience` seconds.
    """
    deadline, wait = time.monotonic() + patience, FIRST_WAIT
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    while True:
        try:
            _getter(address)(address, temporary)
            os.replace(temporary, path)
            return
        except UserError:
            raise
        except ImportError as error:
            scheme = urllib.parse.urlparse(address).scheme
            raise UserError(f"{address}: the client for {scheme}:// is not installed ({error})") from error
        except Exception as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and _is_of_this_machine(error, temporary, path):
                raise
            _raise_if_final(address, error)
            if time.monotonic() + wait > deadline:
                raise TrainingFault(
                    f"{address}: could not be read for {patience:g} s, last because: {error}"
                ) from error
            LOG.warning("%s: %s; trying again in %g s", address, error, wait)
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _is_of_this_machine(error: OSError, *paths: Path) -> bool:
    """Whether writing failed here, rather than reading there."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return error.errno in (errno.EACCES, errno.EPERM) and str(error.filename) in map(str, paths)


def _raise_if_final(address: str, error: Exception) -> None:
    """Raise what no further attempt can mend: a missing file, refused credentials."""
    code = str(getattr(error, "response", None) and error.response.get("Error", {}).get("Code", ""))  # type: ignore[attr-defined]
    if isinstance(error, FileNotFoundError) or code in ("404", "NoSuchKey", "NoSuchBucket"):
        raise DamagedDataError(f"{address}: missing") from error
    if isinstance(error, PermissionError) or code in ("401", "403", "AccessDenied", "InvalidAccessKeyId"):
        raise UserError(f"{address}: access refused ({error}); check the credentials") from error
    if type(error).__name__ == "NoCredentialsError":
        raise UserError(f"{address}: no credentials found ({error})") from error


def _getter(address: str) -> Callable[[str, Path], None]:
    scheme = urllib.parse.urlparse(address).scheme
    if scheme in ("http", "https"):
        return _by_http
    return _by_streaming if scheme in STREAMING_SCHEMES else _by_fsspec


def _by_http(address: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as source, path.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            expected = source.headers.get("Content-Length")
            if expected is not None and out.tell() != int(expected):
                raise ConnectionError(f"{out.tell()} of {expected} bytes arrived")
    except urllib.error.HTTPError as error:
        kinds: dict[int, type[Exception]] = {404: FileNotFoundError, 401: PermissionError, 403: PermissionError}
        raise kinds.get(error.code, ConnectionError)(str(error)) from error


def _by_streaming(address: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    cloud_downloader().get(address).download(address, str(path), ANSWER_SECONDS)


def _by_fsspec(address: str, path: Path) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(urllib.parse.urlparse(address).scheme)
    except ValueError as error:
        raise UserError(f"{address}: not an address that fsspec knows ({error})") from None
    with fsspec.open(address, "rb") as source, path.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
