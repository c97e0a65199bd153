"""Files of an engine's checkpoint: PyTorch's distributed format, as Megatron-core's torch_dist lays it out.

    .metadata       which shard of which tensor lies in which file, from which byte (a pickle of PyTorch's)
    common.pt       plain values
    metadata.json   names the format for Megatron-core
    shards.json     a hash of each shard, to check what is read without reading it twice
    __RANK_N.distcp shards, each as `torch.save` writes it, one after the other

A rank writes its shards and hashes the bytes on their way, so that nobody reads them again; rank 0 joins the lists.
The files are those of a target size, not one a rank, so that a folder stays small on any number of ranks.
"""

import io
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_lst.files import read_json, write_bytes

INDEX, COMMON, FORMAT, HASHES = ".metadata", "common.pt", "metadata.json", "shards.json"
RNG = "rng/shard_0_1"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class Place:
    """Where a shard lies in its tensor.

    Attributes:
        key: name of the tensor.
        size: shape of the whole tensor.
        offset, shape: first element and shape of the shard.
    """

    key: str
    size: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def overlap(self, other: "Place") -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """What both hold: slices of this shard and of the other one; None where they hold nothing in common."""
        mine, theirs = [], []
        for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            first, last = max(a, b), min(a + n, b + m)
            if first >= last:
                return None
            mine.append(slice(first - a, last - a))
            theirs.append(slice(first - b, last - b))
        return tuple(mine), tuple(theirs)


@dataclass(frozen=True)
class Stored:
    """A shard in a file.

    Attributes:
        dtype: None for the generator's state, which is no tensor of the model.
        file, start, length: its bytes.
        hash: xxh3_64 of them; None in a checkpoint of an earlier version.
    """

    place: Place
    dtype: torch.dtype | None
    file: str
    start: int
    length: int
    hash: str | None


@dataclass(frozen=True)
class WrittenFile:
    """A file that one rank has written.

    Attributes:
        size: in bytes.
        xxh3_64: its hash.
        shards: what is in it; none in small files.
    """

    name: str
    size: int
    xxh3_64: str
    shards: tuple[Stored, ...] = ()

    @classmethod
    def of(cls, name: str, content: bytes) -> "WrittenFile":
        return cls(name, len(content), xxhash.xxh3_64(content).hexdigest())

    @property
    def entry(self) -> dict[str, Any]:
        """As the manifest holds it. `by_shard`: a load finds damage by itself."""
        return {"bytes": self.size, "xxh3_64": self.xxh3_64} | ({"by_shard": True} if self.shards else {})


class _HashedStream:
    """Counts and hashes what `torch.save` writes: the file, and the shard under way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._shard, self.bytes = file, xxhash.xxh3_64(), xxhash.xxh3_64(), 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._shard.update(data)
        self._file.write(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def save(self, place: Place, value: Any, dtype: torch.dtype | None, name: str) -> Stored:
        start = self.bytes
        self._shard.reset()
        torch.save(value, self)  # type: ignore[arg-type]
        return Stored(place, dtype, name, start, self.bytes - start, self._shard.hexdigest())

    @property
    def hash(self) -> str:
        return self._digest.hexdigest()


def write_shards(
    folder: Path, rank: int, shards: list[tuple[Place, Tensor]], target: float, rng: Tensor | None = None
) -> list[WrittenFile]:
    """Write one rank's shards into files of about `target` bytes.

    Args:
        shards: contiguous tensors on the host; the list is emptied, so that memory is given back as it is written.
        rng: state of the random generator, on the one rank that keeps it.
    """
    found: list[WrittenFile] = []
    total, taken = sum(tensor.nbytes for _, tensor in shards), 0
    each = total / max(1, round(total / target))
    shards.reverse()  # popped from the end
    while shards or rng is not None:
        name = f"__{rank}_{len(found)}.distcp"
        written: list[Stored] = []
        with (folder / name).open("wb", buffering=0) as file:
            stream = _HashedStream(file)
            if rng is not None:
                written.append(stream.save(Place(RNG, (), (), ()), [rng], None, name))
                rng = None
            while shards and taken < each * (len(found) + 1):
                place, tensor = shards.pop()
                taken += tensor.nbytes
                written.append(stream.save(place, tensor, tensor.dtype, name))
                del tensor
            os.fsync(file.fileno())
        found.append(WrittenFile(name, stream.bytes, stream.hash, tuple(written)))
    return found


def write_index(folder: Path, files: Sequence[WrittenFile], common: dict[str, Any]) -> list[WrittenFile]:
    """Write what makes a folder of shards a checkpoint (one rank does this, when all shards are written)."""
    tensors: dict[str, Any] = {}
    where: dict[MetadataIndex, _StorageInfo] = {}
    for shard in (shard for file in files for shard in file.shards):
        place, info = shard.place, _StorageInfo(shard.file, shard.start, shard.length)
        if shard.dtype is None:
            tensors[place.key] = BytesStorageMetadata()
            where[MetadataIndex(place.key)] = info
            continue
        whole = tensors.setdefault(
            place.key, TensorStorageMetadata(TensorProperties(dtype=shard.dtype), torch.Size(place.size), [])
        )
        whole.chunks.append(ChunkStorageMetadata(torch.Size(place.offset), torch.Size(place.shape)))
        where[MetadataIndex(place.key, place.offset)] = info
    plain = io.BytesIO()
    torch.save(common, plain)
    contents = {
        COMMON: plain.getvalue(),
        FORMAT: json.dumps(_FORMAT).encode(),
        HASHES: json.dumps({file.name: {s.start: s.hash for s in file.shards} for file in files}).encode(),
        INDEX: pickle.dumps(Metadata(tensors, storage_data=where)),
    }
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return [WrittenFile.of(name, content) for name, content in contents.items()]


class StoredShards:
    """The shards of a checkpoint, by the key of their tensor. Files are opened once, when they are first read.

    Args:
        verify: compare the hash of what is read.

    Attributes:
        bytes_read: by this rank so far.
    """

    def __init__(self, folder: Path, shards: dict[str, list[Stored]], verify: bool = True) -> None:
        self._folder, self._shards, self._verify = folder, shards, verify
        self._files: dict[str, IO[bytes]] = {}
        self.bytes_read = 0

    @staticmethod
    def index(folder: Path) -> dict[str, list[Stored]]:
        """What `write_index` wrote, or Megatron-core."""
        # A pickle, of the run's own folder.
        metadata = pickle.loads((folder / INDEX).read_bytes())
        hashes = read_json(folder / HASHES) or {}

        def stored(place: Place, dtype: torch.dtype | None, info: Any) -> Stored:
            known = hashes.get(info.relative_path, {}).get(str(info.offset))
            return Stored(place, dtype, info.relative_path, info.offset, info.length, known)

        found: dict[str, list[Stored]] = {}
        for key, tensor in metadata.state_dict_metadata.items():
            if not isinstance(tensor, TensorStorageMetadata):
                found[key] = [stored(Place(key, (), (), ()), None, metadata.storage_data[MetadataIndex(key)])]
                continue
            for chunk in tensor.chunks:
                info = metadata.storage_data[MetadataIndex(key, chunk.offsets)]
                place = Place(key, tuple(tensor.size), tuple(chunk.offsets), tuple(chunk.sizes))
                found.setdefault(key, []).append(stored(place, tensor.properties.dtype, info))
        return found

    def of(self, key: str) -> list[Stored]:
        return self._shards[key]

    def read(self, shard: Stored) -> Any:
        """The tensor of a shard, on the host.

        Raises:
            OSError, RuntimeError, ValueError: it cannot be read.
        """
        file = self._files.get(shard.file)
        if file is None:
            file = self._files[shard.file] = (self._folder / shard.file).open("rb", buffering=0)
        file.seek(shard.start)
        content = bytearray(shard.length)
        view, done = memoryview(content), 0
        while done < shard.length and (n := file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += n
        self.bytes_read += done
        if done < shard.length:
            raise ValueError(f"{self._folder.name}/{shard.file}: ends {shard.length - done} bytes too early")
        if self._verify and shard.hash is not None and xxhash.xxh3_64(content).hexdigest() != shard.hash:
            raise ValueError(f"{self._folder.name}/{shard.file}: hash differs from what was written")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> "StoredShards":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_common(folder: Path) -> dict[str, Any]:
    """The plain values of `write_index`."""
    return torch.load(folder / COMMON, map_location="cpu", weights_only=True)


def balanced(sizes: Sequence[int], ranks: int) -> list[int]:
    """A rank for each of the sizes, so that all ranks have about the same sum; the same wherever it is computed."""
    loads = [0] * ranks
    found = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(ranks), key=loads.__getitem__)
        found[i] = rank
        loads[rank] += sizes[i]
    return found


def spread(count: int, ranks: int) -> list[int]:
    """`count` of the ranks, evenly apart, so that writers are on different nodes."""
    return [i * ranks // count for i in range(count)]
