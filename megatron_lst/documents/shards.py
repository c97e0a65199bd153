"""Shard sets: folders of MDS shards with hashes, sizes and a manifest.

    SET/manifest.json     schema version, kind, fingerprints, totals; written last, so a set without it is incomplete
    SET/index.json        MDS's own index of every shard, with their hashes
    SET/sizes.npz         per document: raw_tokens, frames, pieces, words (int64), so that nobody opens shards to plan
    SET/part-00000/...    the shards; one part per item of work

Every shard is verified against its hash when it is first opened: MDS by itself serves a damaged shard silently.
"""

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_lst.documents.codec import codec_of
from megatron_lst.documents.format import HASH, SIZE_COLUMNS, SIZES, TokenizerInfo, decode, document_sizes
from megatron_lst.documents.mds import decompress, read_sample
from megatron_lst.documents.opening import Files, LocalFiles, cache_faults, patiently, read_index, read_manifest
from megatron_lst.documents.schema import Document
from megatron_lst.errors import DamagedDataError, UserError

__all__ = ["MEMORY_BUDGET", "Files", "LocalFiles", "ShardSet", "verify", "verify_shard"]
LOG = logging.getLogger(__name__)

MEMORY_BUDGET = 1 << 30
"""Bytes of decompressed shards that one ShardSet keeps when it has no cache folder."""
MAPPED_BUDGET = 1 << 32
"""Bytes of decompressed shards in a cache folder that one ShardSet keeps mapped."""


class ShardSet:
    """Random access to the documents of a shard set: `ShardSet("data/demo/speech")[0]`.

    Attributes:
        path: the set's folder or address.
        manifest: the manifest as read.
        kind: `speech`, `text` or `chat`.
        tokenizer, codec: what made the documents (codec None in sets without speech).
        raw_tokens, frames, pieces, words: int64 [len(self)], one entry per document, known without opening shards;
            mapped from the set's file, so that they take no memory of this process.
        shard_first: int64 [shards + 1], index of each shard's first document, then len(self).
        shard_bytes: int64 [shards], size of each shard's file as stored.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str | None = None,
        tokenizer: str | None = None,
        codebook: str | None = None,
        cache: str | Path | None = None,
        files: Files | None = None,
    ) -> None:
        """Open a set and check what it is; no shard is read yet.

        Args:
            path: the set's folder (where manifest.json lies unless `files` brings it).
            kind, tokenizer, codebook: what the caller expects: kind and fingerprints; None accepts any.
            cache: folder for decompressed shards, shared by processes; None keeps them in memory.
            files: brings the files of a set that lies elsewhere; None: they lie in `path`.

        Raises:
            UserError: no shard set there, or not the expected kind, tokenizer or codebook.
            DamagedDataError: unknown schema version, index and sizes that do not fit the manifest, or files outside
                the set.
        """
        files = files or LocalFiles(Path(path))
        manifest = read_manifest(path, files)
        for name, expected, found in (
            ("kind", kind, manifest["kind"]),
            ("tokenizer", tokenizer, manifest["tokenizer"]["fingerprint"]),
            ("codebook", codebook, (manifest["codebook"] or {}).get("fingerprint")),
        ):
            if expected is not None and found is not None and expected != found:
                raise UserError(f"{path}: its {name} is {found}, expected {expected}{_OTHER.get(name, '')}")
        index, sizes = read_index(path, manifest, files)
        self.path = path if "://" in str(path) else Path(path)
        self.manifest = manifest
        self.kind: str = manifest["kind"]
        self.tokenizer = TokenizerInfo(**manifest["tokenizer"])
        self.codec = codec_of(manifest)
        self.raw_tokens, self.frames, self.pieces, self.words = (sizes[name] for name in SIZE_COLUMNS)
        self._index = index
        self.shard_first = np.concatenate([[0], np.cumsum([s["samples"] for s in index])]).astype(np.int64)
        self.shard_bytes = np.array([(s["zip_data"] or s["raw_data"])["bytes"] for s in index], np.int64)
        self._cache = Path(cache) if cache else None
        self._files = files
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path, **expected: Any) -> "ShardSet":
        """`ShardSet(path, ...)`."""
        return cls(path, **expected)

    def __len__(self) -> int:
        return int(self.shard_first[-1])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._index)

    @property
    def decompressed_bytes(self) -> int:
        """Size of all shards as they are read."""
        return sum(shard["raw_data"]["bytes"] for shard in self._index)

    @property
    def fingerprint(self) -> str:
        """Changes whenever any document does: a hash of the manifest's file hashes and fingerprints."""
        parts = [self.manifest["files"], self.manifest["tokenizer"], self.manifest["codebook"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def shard_of(self, i: int) -> int:
        """The shard that holds document i."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)} in {self.path}")
        return int(np.searchsorted(self.shard_first, i, side="right")) - 1

    def shard_name(self, shard: int) -> str:
        """Path of a shard's file, relative to the set."""
        entry = self._index[shard]
        return str((entry["zip_data"] or entry["raw_data"])["basename"])

    def get(self, i: int) -> Document:
        """Document i. Opens, verifies and keeps its shard.

        Raises:
            DamagedDataError: the shard is missing, truncated or altered; names it.
        """
        shard = self.shard_of(i)
        data, local = self._shard(shard), i - int(self.shard_first[shard])
        begin, end = data[4 + 4 * local : 12 + 4 * local].view(np.uint32)
        try:
            return decode(read_sample(data[begin:end].tobytes(), self._index[shard]), self.codec)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DamagedDataError(
                f"{self.path}/{self.shard_name(shard)}: document {local} cannot be decoded ({error})"
            ) from error

    def __getitem__(self, i: int) -> Document:
        return self.get(i)

    def __iter__(self) -> Iterator[Document]:
        return (self.get(i) for i in range(len(self)))

    def _shard(self, shard: int) -> np.ndarray:
        """The shard's raw bytes, uint8, verified."""
        data = self._open.get(shard)
        if data is not None:
            self._open.move_to_end(shard)
            return data
        data = self._load(shard)
        self._open[shard] = data
        # Mapped shards take no memory, but a file that the cache drops keeps its disk space while it is mapped.
        budget = MEMORY_BUDGET if self._cache is None else MAPPED_BUDGET
        while len(self._open) > 1 and sum(map(len, self._open.values())) > budget:
            self._open.popitem(last=False)
        return data

    def _load(self, shard: int) -> np.ndarray:
        entry = self._index[shard]
        raw = entry["raw_data"]
        if self._cache is not None and entry["zip_data"]:
            return self._load_cached(shard, self._cache / raw["basename"])
        if not entry["zip_data"]:
            return self._stored(raw, keep=False)
        data = np.frombuffer(self._decompress(shard), np.uint8)
        self._verify(raw["basename"], data, raw)
        return data

    def _load_cached(self, shard: int, cached: Path) -> np.ndarray:
        """A decompressed shard in the cache folder, made if it is not there; other processes may be at it too. A copy
        that is damaged is made once more."""
        raw, again = self._index[shard]["raw_data"], True
        while True:
            if not cached.exists():
                with cache_faults(self._cache or cached.parent):
                    cached.parent.mkdir(parents=True, exist_ok=True)
                    temporary = cached.with_name(f"{cached.name}.{os.getpid()}.tmp")
                    try:
                        temporary.write_bytes(self._decompress(shard))
                        os.replace(temporary, cached)
                    finally:
                        temporary.unlink(missing_ok=True)
            try:
                data = patiently(
                    lambda: np.memmap(cached, np.uint8, "r") if cached.stat().st_size else _NO_BYTES,
                    self._files.first_pause,
                )
            except FileNotFoundError:
                continue  # the cache's owner made room just now
            self._files.used(cached)
            try:
                self._verify(raw["basename"], data, raw, cached)
                return data
            except DamagedDataError as error:
                if not again:
                    raise
                LOG.warning("%s; it is made again", error)
                with cache_faults(self._cache or cached.parent):
                    cached.unlink(missing_ok=True)
            again = False

    def _decompress(self, shard: int) -> bytes:
        entry = self._index[shard]
        content = self._stored(entry["zip_data"], keep=True)
        return decompress(content.tobytes(), entry["compression"])

    def _stored(self, file: dict[str, Any], keep: bool) -> np.ndarray:
        """A shard's file as it is stored, verified; fetched once more where a damaged copy can be replaced.

        Args:
            keep: read it (it is used once) instead of mapping it.
        """
        name, again = file["basename"], True
        while True:
            path = self._files.fetch(name)
            try:
                data = patiently(lambda path=path: _content(path, keep), self._files.first_pause)  # type: ignore[misc]
                self._verify(name, data, file)
                return data
            except FileNotFoundError:
                if not (again and self._files.discard(name)):
                    raise DamagedDataError(f"{self.path}/{name}: the shard is missing") from None
            except DamagedDataError:
                if not (again and self._files.discard(name)):
                    raise
            except OSError as error:
                raise UserError(f"{self.path}/{name}: cannot be read ({error.strerror})") from error
            again = False

    def _verify(self, name: str, data: np.ndarray, expected: dict[str, Any], cached: Path | None = None) -> None:
        where = f"{self.path}/{name}" + (f" (its copy {cached}; delete it to have it made again)" if cached else "")
        if len(data) != expected["bytes"]:
            raise DamagedDataError(f"{where}: {len(data)} bytes, the index says {expected['bytes']}: truncated?")
        found = xxhash.xxh128_hexdigest(data.data)
        if found != expected["hashes"][HASH]:
            raise DamagedDataError(f"{where}: hash {found}, the index says {expected['hashes'][HASH]}: altered")

    def check_sizes(self) -> None:
        """Compare the size of every shard's file with the index, of a set that lies in a local folder.

        Raises:
            DamagedDataError: a shard is missing or truncated; names the first.
        """
        for shard in range(self.shards):
            path = Path(self.path) / self.shard_name(shard)
            if not path.is_file():
                raise DamagedDataError(f"{path}: the shard is missing")
            if (size := path.stat().st_size) != self.shard_bytes[shard]:
                expected = int(self.shard_bytes[shard])
                raise DamagedDataError(f"{path}: {size} bytes, the index says {expected}: truncated?")

    def close(self) -> None:
        """Drop every open shard."""
        self._open.clear()


_OTHER = {
    name: f": it was prepared with another {name}, whose ids mean something else; prepare it with the expected one"
    for name in ("tokenizer", "codebook")
}
_NO_BYTES: np.ndarray = np.zeros(0, np.uint8)


def _content(path: Path, keep: bool) -> np.ndarray:
    """A file's bytes, read (`keep`) or mapped; an empty file cannot be mapped."""
    if keep or path.stat().st_size == 0:
        return np.fromfile(path, np.uint8)
    return np.memmap(path, np.uint8, "r")


def verify(path: str | Path) -> list[str]:
    """Re-read everything in a set. Returns one message per fault; empty when all is well.

    Raises:
        UserError, DamagedDataError: the set cannot be opened at all.
    """
    shards = ShardSet.open(path)
    faults: list[str] = []
    for shard in range(shards.shards):
        faults += verify_shard(shards, shard)
        shards.close()
    return faults


def verify_shard(
    shards: ShardSet, shard: int, look: Callable[[list[Document]], list[str]] = lambda documents: []
) -> list[str]:
    """Re-read one shard of a set. Returns what is wrong with it: one message, or what `look` says.

    Args:
        look: sees the shard's documents when they are well; one message for each fault that it finds.
    """
    speech = shards.codec.size if shards.codec else None
    documents = []
    try:
        for i in range(int(shards.shard_first[shard]), int(shards.shard_first[shard + 1])):
            document = shards.get(i)
            document.check(speech, shards.tokenizer.size)
            if shards.codec is not None and (wrong := shards.codec.check(document.speech_ids)):
                raise DamagedDataError(f"document {document.id!r} of source {document.source!r}: {wrong}")
            expected = (shards.raw_tokens[i], shards.frames[i], shards.pieces[i], shards.words[i])
            if document_sizes(document) != expected:
                raise DamagedDataError(
                    f"{shards.path}/{shards.shard_name(shard)}: document {document.id!r} is not of the size in {SIZES}"
                )
            documents.append(document)
    except DamagedDataError as error:
        return [str(error)]
    return look(documents)
