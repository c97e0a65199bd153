"""What a rank alone hears of the others: they are as it is, and what rank 0 says is said here.

None of that is counted as this rank's. Whatever is not replaced here runs as on a real rank.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from megatron_lst.engines import checkpoint_files, sharded_checkpoint
from megatron_lst.engines.checkpoint_files import Place, Stored, StoredShards
from megatron_lst.engines.megatron import optimizer_state
from megatron_lst.engines.sharded_checkpoint import KINDS, MODEL, ShardedCheckpoint
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.simulation.counting import Counts
from megatron_lst.simulation.live import Live
from megatron_lst.simulation.rank import META
from megatron_lst.training import builders
from megatron_lst.training.balancing import RowBalancer
from megatron_lst.training.ranks import Ranks

_SMALL = 5000
"""Bytes of the generator's state in a file."""


@dataclass
class Seen:
    """What a rank showed of itself on its way.

    Attributes:
        letters: phase -> bytes of what it sent to rank 0.
        copied: bytes on the host for a save; read: bytes of shards in a load.
        writers: ranks that write this rank's part of the model.
    """

    letters: dict[str, int] = field(default_factory=dict)
    copied: int = 0
    read: int = 0
    writers: int = 0


@dataclass(frozen=True)
class _Host:
    """A tensor on the host: its size alone."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@contextmanager
def absent_others(counts: Counts, live: Live, layout: ParallelLayout, rank: int) -> Iterator[Seen]:
    """Within it, in an `absent_world`, a job can start, save and load. To be entered before `counting`."""
    seen, store = Seen(), dist.HashStore()
    with ExitStack() as patches:

        def instead(owner: Any, name: str, function: Callable[..., Any]) -> None:
            patches.enter_context(patch.object(owner, name, function))

        instead(dist.distributed_c10d, "_get_default_store", lambda: store)
        _messages(counts, seen, layout, rank, instead)
        _saves(seen, instead)
        _loads(counts, seen, live, instead)
        yield seen


def _messages(counts: Counts, seen: Seen, layout: ParallelLayout, rank: int, instead: Callable[..., None]) -> None:
    get, on_writer, collect = dist.Store.get, Ranks.on_writer, Ranks.collect
    mine = rank // layout.tensor % layout.data

    def get_told(self: Any, key: str) -> bytes:
        with counts.uncounted():
            if self.check([key]):
                return get(self, key)
        name = key.rsplit("/", 1)[-1]
        if key.startswith("place "):  # the builder of another share: as far from here as the share is
            return str(rank + (int(name) - mine) * layout.tensor).encode()
        return {"all": b"1", "verdict": b"", "first": b""}[name]

    def on_rank_0(self: Ranks, action: Callable[[], Any]) -> Any:
        if rank == 0 or self.world_size == 1:
            return on_writer(self, action)
        with counts.uncounted():
            result = action()
        self.broadcast_object(None)
        return result

    def collected(self: Ranks, value: Any) -> dict[int, Any]:
        if value is not None:
            seen.letters[counts.now] = seen.letters.get(counts.now, 0) + len(pickle.dumps(value))
        found = collect(self, value)
        return {rank: value} if value is not None and not found else found

    def exchange(self: RowBalancer, rows: Any) -> list[Any]:
        counts.messages[counts.now]["exchanges"] += 2 * (self._group is not None)
        return list(rows)

    instead(dist.Store, "get", get_told)
    instead(dist.Store, "multi_get", lambda self, keys: [get_told(self, key) for key in keys])
    instead(dist, "broadcast_object_list", lambda *_, **__: None)
    instead(Ranks, "on_writer", on_rank_0)
    instead(Ranks, "collect", collected)
    instead(RowBalancer, "__call__", exchange)
    instead(builders, "local_identity", lambda: f"machine of rank {rank}")


def _saves(seen: Seen, instead: Callable[..., None]) -> None:
    write_shards, spread = checkpoint_files.write_shards, checkpoint_files.spread

    def save(stream: Any, place: Place, value: Any, dtype: torch.dtype | None, name: str) -> Stored:
        start, size = stream.bytes, value.nbytes if isinstance(value, _Host) else _SMALL
        os.truncate(stream._file.fileno(), start + size)  # a hole
        stream.bytes += size
        return Stored(place, dtype, name, start, size, "0" * 16)

    def write(folder: Any, rank: int, shards: Any, *rest: Any) -> Any:
        seen.copied += sum(tensor.nbytes for _, tensor in shards)
        files = write_shards(folder, rank, shards, *rest)
        if files:
            seen.letters["save"] = seen.letters.get("save", 0) + len(pickle.dumps(files))
        return files

    def spread_seen(count: int, ranks: int) -> list[int]:
        seen.writers = count
        return spread(count, ranks)

    instead(checkpoint_files._HashedStream, "save", save)
    instead(sharded_checkpoint, "write_shards", write)
    instead(sharded_checkpoint, "spread", spread_seen)
    instead(sharded_checkpoint, "_to_host", lambda tensor: _Host(tensor.shape, tensor.dtype))
    instead(optimizer_state, "get_step", lambda core: 1)
    instead(ShardedCheckpoint, "_total", lambda self, number: int(number))


def _loads(counts: Counts, seen: Seen, live: Live, instead: Callable[..., None]) -> None:
    read_index, write_shards = ShardedCheckpoint._read_index, checkpoint_files.write_shards

    def index(self: ShardedCheckpoint, folder: Path) -> Any:
        """Rank 0 reads what it has saved; each rank hears where its part of the model lies, and finds those files."""
        if self._state.rank == 0:
            read_index(self, folder)
        else:
            dist.broadcast_object_list([None], src=0)
        found: dict[str, list[Stored]] = {}
        with counts.uncounted(), live.host():
            loaded = [one for one in self._parameters() if not getattr(one[1], "shared", False)]
            for shard in files(self, folder, loaded, 0):  # tensor-parallel rank 0 saves what all of them hold
                found[shard.place.key] = [shard]
            mine = [one for one in loaded if one[2].kind != "whole"]
            for shard in files(self, folder, mine, self._state.tensor_rank) if self._state.tensor_rank else ():
                found[shard.place.key] = [shard]
        return found, {"adam_step": 1}, torch.empty(0)

    def files(self: ShardedCheckpoint, folder: Path, saved: list[Any], tensor_rank: int) -> Iterator[Stored]:
        """All files that the ranks of one share of this stage write in a save, as `ShardedCheckpoint._snapshot`."""
        state, target = self._state, self._config.checkpoint.file_megabytes * 1e6
        sizes = [self._bytes(parameter) for _, parameter, _ in saved]
        data = state.layout.data
        writers = checkpoint_files.spread(min(data, max(1, round(sum(sizes) / target))), data)
        parts: list[list[Any]] = [[] for _ in writers]
        for (name, parameter, spec), number in zip(saved, checkpoint_files.balanced(sizes, len(writers)), strict=True):
            for kind in KINDS:
                dtype = parameter.dtype if kind == MODEL else torch.float32
                value = torch.empty(self._tensors.shape(parameter), dtype=dtype, device=META)
                shards = self._shards(kind, name, value, spec)
                parts[number] += [(place, _Host(part.shape, dtype)) for place, part in shards]
        first = state.rank - state.data_rank * state.layout.tensor - state.tensor_rank + tensor_rank
        for writer, part in zip(writers, parts, strict=True):
            for file in write_shards(folder, first + writer * state.layout.tensor, part, target):
                yield from file.shards

    def read(self: StoredShards, shard: Stored) -> Any:
        if shard.file not in self._files:
            self._files[shard.file] = (self._folder / shard.file).open("rb", buffering=0)
        if shard.dtype is None:
            return [torch.empty(0)]
        seen.read += shard.length
        with live.host():
            return torch.empty(shard.place.shape, dtype=shard.dtype, device=META)

    instead(ShardedCheckpoint, "_read_index", index)
    instead(StoredShards, "read", read)
    instead(torch, "set_rng_state", lambda state: None)
