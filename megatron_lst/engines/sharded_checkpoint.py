"""What `save` writes and `load` reads: Megatron-core's torch_dist format, every tensor in the shape of a weight.

    model.json      the canonical weights' shapes, to refuse another model's checkpoint in words
    the rest        see `checkpoint_files`

Tensors are keyed by canonical position, not by rank: `model.NAME` holds the weight, `master.NAME`, `exp_avg.NAME` and
`exp_avg_sq.NAME` the optimizer's state, fully reshardable over TP, PP and DP, with or without the distributed
optimizer.  Nothing of the model draws random numbers while it trains; the generator's state is kept all the same.

Who writes which tensor follows from the layout, so no rank asks another. A save takes one tensor at a time to the host
of the rank that writes it: the device holds at most one whole tensor more, a host its share of the files. A load reads
each shard on one rank of a pipeline stage, which sends it to the others.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lst.config.schema import Config
from megatron_lst.engines.checkpoint_files import (
    RNG,
    Place,
    Stored,
    StoredShards,
    WrittenFile,
    balanced,
    read_common,
    spread,
    write_index,
    write_shards,
)
from megatron_lst.engines.weights_io import local_parameters
from megatron_lst.errors import DamagedDataError, LstError, UserError
from megatron_lst.files import write_bytes
from megatron_lst.model.sharding import ShardSpec
from megatron_lst.parallel.mailbox import Mailbox
from megatron_lst.parallel.state import ParallelState
from megatron_lst.weights import canonical_shapes

SHAPES = "model.json"
MODEL, MASTER, STATES = "model", "master", ("exp_avg", "exp_avg_sq")
"""What is kept of each parameter: the weight, its fp32 master, AdamW's two moments."""
KINDS = (MODEL, MASTER, *STATES)
_GLOBAL = "global_transformer.layers."
_UNREADABLE = (OSError, RuntimeError, LookupError, ValueError, EOFError)


class Tensors(Protocol):
    """Gives and takes the tensors of a parameter; see `optimizer_state.CoreTensors` for the contract."""

    def begin(self) -> None: ...

    def fetch(self, parameter: nn.Parameter, name: str, to: int) -> Tensor | None: ...

    def put(self, parameter: nn.Parameter, name: str, value: Tensor | None, source: int) -> None: ...

    def shape(self, parameter: nn.Parameter) -> torch.Size: ...

    def get_step(self) -> int: ...

    def set_step(self, step: int) -> None: ...


class ShardedCheckpoint:
    """Saves and loads one engine's chunks and optimizer."""

    def __init__(self, config: Config, state: ParallelState, chunks: list[Any], tensors: Tensors) -> None:
        self._config, self._state, self._chunks, self._tensors = config, state, chunks, tensors
        self._writing: _Writing | None = None
        self._turn = 0
        self._mailbox = Mailbox(state.rank, _from_first, self._total)

    def _total(self, number: int) -> int:
        told = torch.tensor(float(number), dtype=torch.float64, device=self._state.device)
        dist.all_reduce(told)
        return int(told)

    def save(
        self, folder: Path, asynchronous: bool, ready: Callable[[], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Write into an existing, empty folder; collective. See `Engine.save`."""
        if self._writing is not None:  # given up, as another rank could not begin it
            with contextlib.suppress(OSError):
                self._writing.finish(wait=True)
        target = self._config.checkpoint.file_megabytes * 1e6
        shards = self._snapshot(target)
        rng = torch.get_rng_state() if self._state.rank == 0 else None
        common = {"adam_step": self._tensors.get_step()}
        self._writing = _Writing(folder, self._state.rank, shards, target, rng, common, ready)
        if asynchronous:
            return {}
        complete, entries, problem = self.seal(), {}, None
        if complete is not None:
            try:
                entries = complete()
            except OSError as error:
                problem = f"rank 0: {error}"
        self._agree(problem)
        return entries

    def _agree(self, problem: str | None) -> None:
        """OSError on every rank where rank 0 has a problem."""
        told = _from_first(problem)
        if told is not None:
            raise OSError(told)

    def _snapshot(self, target: float) -> list[tuple[Place, Tensor]]:
        """What this rank writes, on the host; collective over the data-parallel ranks."""
        self._tensors.begin()
        saved = [(n, p, s) for n, p, s in self._parameters() if self._is_saved(p, s)]
        sizes = [self._bytes(p) for _, p, _ in saved]
        ranks = self._state.layout.data
        writers = spread(min(ranks, max(1, round(sum(sizes) / target))), ranks)
        found = []
        for (name, parameter, spec), number in zip(saved, balanced(sizes, len(writers)), strict=True):
            for kind in KINDS:
                value = self._tensors.fetch(parameter, kind, writers[number])
                if value is not None:
                    found += [(place, _to_host(part)) for place, part in self._shards(kind, name, value, spec)]
                del value  # the next one takes its room on the device
        if self._state.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return found

    def _bytes(self, parameter: nn.Parameter) -> int:
        return self._tensors.shape(parameter).numel() * (parameter.element_size() + 4 * (len(KINDS) - 1))

    def _is_saved(self, parameter: nn.Parameter, spec: ShardSpec) -> bool:
        """Of replicas one is saved: not the last stage's copy, and what all tensor-parallel ranks hold by the first."""
        return not getattr(parameter, "shared", False) and (spec.kind != "whole" or self._state.tensor_rank == 0)

    def finish(self, wait: bool) -> bool:
        """True when this rank has written its files. Not collective.

        Raises:
            OSError: they could not be written.
        """
        return self._writing is None or self._writing.finish(wait)

    def seal(self) -> Callable[[], dict[str, dict[str, Any]]] | None:
        """End the save that is under way; collective. See `Engine.seal_save`."""
        writing, self._writing = self._writing, None
        assert writing is not None, "no save is under way"
        mine: list[WrittenFile] | str
        try:
            writing.finish(wait=True)
            mine = writing.files
        except OSError as error:
            mine = f"rank {self._state.rank}: {error}"
        parts = self._mailbox.collect(mine or None).values()
        self._agree(next((part for part in parts if isinstance(part, str)), None))
        if self._state.rank:
            return None
        files = [file for part in parts for file in part]
        shapes = {name: list(shape) for name, shape in canonical_shapes(self._config).items()}
        content = json.dumps({"kind": self._config.model.kind, "weights": shapes}, indent=1).encode()

        def complete() -> dict[str, dict[str, Any]]:
            write_bytes(writing.folder / SHAPES, content)
            index = write_index(writing.folder, files, writing.common)
            return {file.name: file.entry for file in (*files, WrittenFile.of(SHAPES, content), *index)}

        return complete

    def load(self, folder: Path) -> None:
        """Read what `save` wrote on any layout; collective.

        Raises:
            UserError: another model's checkpoint; lists what differs.
            DamagedDataError: files are missing or unreadable.
        """
        index, common, rng = self._read_index(folder)
        self._tensors.begin()
        state = self._state
        loaded = [(n, p, s) for n, p, s in self._parameters() if not getattr(p, "shared", False)]
        readers = balanced([self._bytes(p) for _, p, _ in loaded], state.layout.data)
        problem: str | None = None
        with StoredShards(folder, index, self._config.checkpoint.verify == "hashes") as stored:
            for (name, parameter, spec), reader in zip(loaded, readers, strict=True):
                for kind in KINDS:
                    value = None
                    if state.data_rank == reader:
                        dtype = parameter.dtype if kind == MODEL else torch.float32
                        value = torch.empty(self._tensors.shape(parameter), dtype=dtype, device=state.device)
                        for place, part in self._shards(kind, name, value, spec):
                            problem = self._read(stored, place, part) or problem
                    self._tensors.put(parameter, kind, value, reader)
        self._tensors.set_step(int(common["adam_step"]))
        torch.set_rng_state(rng)
        self._tell_all(problem, folder)

    def _tell_all(self, problem: str | None, folder: Path) -> None:
        """DamagedDataError on every rank where one has a problem."""
        if self._total(problem is not None):
            told = _from_first(sorted(set(self._mailbox.collect(problem).values()))[:8])
            raise DamagedDataError(f"The checkpoint {folder} cannot be read: {'; '.join(told)}")

    def _read(self, stored: StoredShards, place: Place, target: Tensor) -> str | None:
        """Fill the local part of a tensor; collective over the tensor-parallel ranks. Returns what went wrong."""
        peers = self._state.layout.tensor
        local = [self._moved(place, rank) for rank in range(peers)]
        problem = None
        try:
            shards = stored.of(place.key)
        except LookupError:
            return f"it has no {place.key}"
        for shard in shards:
            wanted = [rank for rank in range(peers) if shard.place.overlap(local[rank])]
            if not wanted:
                continue
            reader, tensor = wanted[self._turn % len(wanted)], None
            self._turn += len(wanted) > 1  # they take turns
            if self._state.tensor_rank == reader:
                try:
                    tensor = stored.read(shard)
                except _UNREADABLE as error:
                    problem = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                    tensor = torch.zeros(shard.place.shape, dtype=shard.dtype)
            if len(wanted) > 1:
                tensor = self._from_peer(shard, tensor, reader)
            if tensor is not None and (both := shard.place.overlap(local[self._state.tensor_rank])):
                theirs, mine = both
                target[mine].copy_(tensor[theirs])
        return problem

    def _from_peer(self, shard: Stored, tensor: Tensor | None, reader: int) -> Tensor:
        device = self._state.device
        held = torch.empty(shard.place.shape, dtype=shard.dtype, device=device) if tensor is None else tensor.to(device)
        dist.broadcast(held, group_src=reader, group=self._state.tensor_group)
        return held

    def _moved(self, place: Place, rank: int) -> Place:
        """The part of tensor-parallel rank `rank`, where `place` is this rank's."""
        step = rank - self._state.tensor_rank
        offset = tuple(
            o + step * n if n != whole else o for o, n, whole in zip(place.offset, place.shape, place.size, strict=True)
        )
        return Place(place.key, place.size, offset, place.shape)

    def _read_index(self, folder: Path) -> tuple[dict[str, list[Stored]], dict[str, Any], Tensor]:
        """Index, plain values and the generator's state, read by rank 0 for all."""
        told: list[Any] = [None]
        if self._state.rank == 0:
            try:
                self._check_model(folder)
                index = StoredShards.index(folder)
                with StoredShards(folder, index) as stored:
                    told = [(index, read_common(folder), stored.read(stored.of(RNG)[0])[0])]
            except LstError as error:
                told = [error]
            except _UNREADABLE as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                told = [DamagedDataError(f"The checkpoint {folder} cannot be read: {reason}")]
        found = _from_first(told[0])
        if isinstance(found, LstError):
            raise found
        return found

    def _check_model(self, folder: Path) -> None:
        try:
            saved = json.loads((folder / SHAPES).read_text())
        except (OSError, ValueError) as error:
            raise DamagedDataError(f"The checkpoint {folder} is not complete: {SHAPES}: {error}") from error
        mine = {name: list(shape) for name, shape in canonical_shapes(self._config).items()}
        theirs = saved["weights"]
        wrong = [f"{n}: {theirs.get(n, 'not there')} in the checkpoint, {mine.get(n, 'not there')} in this model"
                 for n in {**mine, **theirs} if mine.get(n) != theirs.get(n)]  # fmt: skip
        if wrong:
            shown = wrong[:8] + ([f"... and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
            raise UserError(f"The checkpoint {folder} is another model's:\n  " + "\n  ".join(shown))

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter, ShardSpec]]:
        """This rank's parameters, by their name in the whole model."""
        for chunk in self._chunks:
            for name, parameter, spec in local_parameters([chunk], self._config):
                yield global_name(name, chunk.first_layer), parameter, spec

    def _shards(self, kind: str, name: str, value: Tensor, spec: ShardSpec) -> Iterator[tuple[Place, Tensor]]:
        """Views of a parameter's tensor, with the place of each in the tensors of the checkpoint."""
        rank, ranks = self._state.tensor_rank, self._state.layout.tensor
        key = f"{kind}.{name}"
        parts = [(key, value)]
        if spec.kind == "stacked":
            parts = list(zip(_halves(key), value.chunk(2), strict=True))
        for sub, part in parts:
            shape = tuple(part.shape)
            size, offset = list(shape), [0] * len(shape)
            if spec.kind != "whole":
                split = 1 if spec.kind == "row" else 0
                size[split], offset[split] = ranks * shape[split], rank * shape[split]
            yield Place(sub, tuple(size), tuple(offset), shape), part


class _Writing:
    """The files of one save on one rank, written by a thread: the step goes on however slow the file system is."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        shards: list[tuple[Place, Tensor]],
        target: float,
        rng: Tensor | None,
        common: dict[str, Any],
        ready: Callable[[], None] | None,
    ) -> None:
        self.folder, self.common = folder, common
        self.files: list[WrittenFile] = []
        self._error: BaseException | None = None

        def write() -> None:
            try:
                if ready is not None:
                    ready()
                self.files = write_shards(folder, rank, shards, target, rng)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self, wait: bool) -> bool:
        if wait:
            self._thread.join()
        if self._thread.is_alive():
            return False
        if isinstance(self._error, OSError):
            raise self._error
        if self._error is not None:
            raise OSError(str(self._error)) from self._error
        return True


def _from_first(value: Any) -> Any:
    """Rank 0's object on every rank."""
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _to_host(tensor: Tensor) -> Tensor:
    """A copy, contiguous; from a GPU it is under way when this returns."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return host.copy_(tensor, non_blocking=True)


def _halves(key: str) -> tuple[str, str]:
    """Keys of a stacked parameter's two matrices, which are stored apart: their shards depend on the layout."""
    if "kv_proj" in key:
        return key.replace("kv_proj", "k_proj"), key.replace("kv_proj", "v_proj")
    return f"{key}.gate", f"{key}.up"


def global_name(name: str, first_layer: int) -> str:
    """A parameter's name in its chunk -> its name in the whole model."""
    if not name.startswith(_GLOBAL):
        return name
    layer, rest = name[len(_GLOBAL) :].split(".", 1)
    return f"{_GLOBAL}{int(layer) + first_layer}.{rest}"
