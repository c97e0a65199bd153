"""What one rank makes, writes, reads and holds on thousands of ranks: the real code, and nobody at the other end.

    PYTHONPATH=.:kernels:data_prep python -m benchmarks.scale configs/lst-7b.yaml --ranks 8 64 512 4096 16384 [--json]

Groups are made under PyTorch's fake process group, tensors live on the meta device (`benchmarks.rank`), and the engine
builds, saves and loads. What is counted is what happens: calls of `new_group`, bytes of storages alive, files that an
audit hook sees opened, bytes that `write` and `read` are asked for. A file has the size that it would have, as a hole.
For each size the first rank of each pipeline stage is looked at, and the last rank; the table has the worst of them.
"""

import argparse
import json
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.rank import META, stage_rank, state_bytes, traced_rank
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.parallel.layout import ParallelLayout

SIZES = (8, 64, 512, 4096, 16384)


@dataclass(frozen=True)
class Counts:
    """Of one rank.

    Attributes:
        ranks, rank, layout: which one.
        groups: process groups that it takes part in making; peers: members of them beside itself, in all.
        state: bytes on the device between steps: weights, gradients, optimizer.
        save_device, load_device: most bytes on the device beside those, while it saves or loads.
        save_host: bytes copied to the host for a save.
        files: written in a save; written: bytes of them.
        messages: of objects, in a save.
        read: bytes of the checkpoint that it reads in a load.
    """

    ranks: int
    rank: int
    layout: str
    groups: int
    peers: int
    state: int
    save_device: int
    save_host: int
    files: int
    written: int
    messages: int
    load_device: int
    read: int


class _Live(TorchDispatchMode):
    """Bytes of meta storages that were made within it and are alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()
        self._counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":  # fills what is there
            return func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.device != META:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in before or key in self._known:
                continue
            if not self._counts:
                continue
            self._known.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._release, key, size)
        return result

    @contextmanager
    def host(self) -> Iterator[None]:
        """What is made within it lies in the host's memory."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class _Opened:
    """Files under a folder that this process opens; an audit hook stays for good, so there is one."""

    folder: str | None = None
    paths: list[str] = []  # noqa: RUF012
    _hooked = False

    @classmethod
    @contextmanager
    def under(cls, folder: Path) -> Iterator[list[str]]:
        if not cls._hooked:
            sys.addaudithook(cls._hook)
            cls._hooked = True
        cls.folder, cls.paths = str(folder), []
        try:
            yield cls.paths
        finally:
            cls.folder = None

    @classmethod
    def _hook(cls, event: str, arguments: Any) -> None:
        if event == "open" and cls.folder is not None and str(arguments[0]).startswith(cls.folder):
            cls.paths.append(str(arguments[0]))


@dataclass(frozen=True)
class _Host:
    """A tensor on the host: its size alone."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@contextmanager
def _nobody_answers(messages: list[Any]) -> Iterator[None]:
    """Values that are not there are not looked at; objects are sent to nobody, and rank 0 hears itself alone."""
    from megatron_lst.engines import checkpoint_files as files
    from megatron_lst.engines import sharded_checkpoint as sharded
    from megatron_lst.engines.megatron import optimizer_state

    def gather_object(mine: Any, parts: list[Any] | None, dst: int) -> None:
        messages.append(mine)
        if parts is not None:
            parts[:] = [mine, *([[]] * (len(parts) - 1))]

    def save(stream: Any, place: files.Place, value: Any, dtype: torch.dtype | None, name: str) -> files.Stored:
        start, size = stream.bytes, value.nbytes if isinstance(value, _Host) else 5000
        os.truncate(stream._file.fileno(), start + size)
        stream.bytes += size
        return files.Stored(place, dtype, name, start, size, None)

    with ExitStack() as patches:
        for owner, name, instead in (
            (dist, "gather_object", gather_object),
            (dist, "broadcast_object_list", lambda told, src: messages.append(None)),
            (optimizer_state, "get_step", lambda core: 1),
            (sharded, "_to_host", lambda tensor: _Host(tensor.shape, tensor.dtype)),
            (files._HashedStream, "save", save),
            (sharded.ShardedCheckpoint, "_tell_all", lambda *_: None),
        ):
            patches.enter_context(patch.object(owner, name, instead))
        yield


def whole_batches(config: Config, ranks: int) -> Config:
    """The configuration with a global batch that so many ranks can share."""
    parallel, training = config.parallel, config.training
    data = ranks // (parallel.tensor * parallel.pipeline)
    least = max(data, 1) * training.micro_batch * (parallel.pipeline if parallel.virtual > 1 else 1)
    return replace(config, training=replace(training, global_batch=-(-training.global_batch // least) * least))


def count(config: Config, ranks: int, rank: int) -> Counts:
    """Build, save and load as world rank `rank` of `ranks`.

    Raises:
        UserError: the layout cannot work on so many ranks.
    """
    from megatron_lst.engines import checkpoint_files as files

    made: list[int] = []
    new_group = dist.new_group

    def counted(*arguments: Any, **options: Any) -> Any:
        members = arguments[0] if arguments else options.get("ranks")
        made.append(ranks if members is None else len(members))
        return new_group(*arguments, **options)

    messages: list[Any] = []
    config = whole_batches(config, ranks)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        stack.enter_context(patch.object(dist, "new_group", counted))
        engine = stack.enter_context(traced_rank(config, ranks, rank))
        stack.enter_context(_nobody_answers(messages))
        groups, peers = len(made), sum(size - 1 for size in made)
        writing: list[Any] = []
        plain_write = files.write_shards
        stack.enter_context(
            patch(
                "megatron_lst.engines.sharded_checkpoint.write_shards",
                lambda folder, rank, shards, *rest: (
                    writing.extend(shards),
                    plain_write(folder, rank, shards, *rest),
                )[1],
            )
        )
        with _Live() as saving, _Opened.under(folder) as opened:
            engine._checkpoints.save(folder, False)
        files_written = [path for path in set(opened) if path.endswith(".distcp")]
        written = sum(os.stat(path).st_size for path in files_written)
        index = _index_of(engine)
        asked: list[int] = []

        def read(self: Any, shard: files.Stored) -> Tensor:
            asked.append(shard.length)
            with loading.host():
                return torch.empty(shard.place.shape, dtype=shard.dtype, device=META)

        stack.enter_context(patch.object(files.StoredShards, "read", read))
        stack.enter_context(
            patch.object(type(engine._checkpoints), "_read_index", lambda *_: (index, {"adam_step": 1}, torch.empty(0)))
        )
        stack.enter_context(patch.object(torch, "set_rng_state", lambda state: None))
        with _Live() as loading:
            engine._checkpoints.load(folder)
        return Counts(
            ranks=ranks,
            rank=rank,
            layout=engine.layout.short,
            groups=groups,
            peers=peers,
            state=sum(state_bytes(engine).values()),
            save_device=saving.peak,
            save_host=sum(tensor.nbytes for _, tensor in writing),
            files=len(files_written),
            written=written,
            messages=len(messages),
            load_device=loading.peak,
            read=sum(asked),
        )


def _index_of(engine: Any) -> dict[str, list[Any]]:
    """What a save of this rank's part of the model leaves, however many ranks have written it."""
    from megatron_lst.engines.checkpoint_files import Stored
    from megatron_lst.engines.sharded_checkpoint import KINDS, MODEL

    found: dict[str, list[Any]] = {}
    checkpoints = engine._checkpoints
    for name, parameter, spec in checkpoints._parameters():
        for kind in KINDS:
            dtype = parameter.dtype if kind == MODEL else torch.float32
            value = torch.empty(parameter.shape, dtype=dtype, device=META)
            for place, part in checkpoints._shards(kind, name, value, spec):
                found[place.key] = [Stored(place, dtype, "part", 0, part.numel() * dtype.itemsize, None)]
    return found


def looked_at(config: Config, ranks: int) -> list[int]:
    """The first rank of each stage, and the last rank of all."""
    parallel = config.parallel
    data = ranks // (parallel.tensor * parallel.pipeline)
    layout = ParallelLayout(parallel.tensor, parallel.pipeline, parallel.virtual, data, parallel.sequence)
    return sorted({*(stage_rank(layout, stage) for stage in range(parallel.pipeline)), ranks - 1})


def table(found: Sequence[Sequence[Counts]]) -> str:
    """Markdown: the worst rank of each size."""
    lines = [
        "| ranks | layout | groups | peers in them | state GB | save: device GB | host GB | files a rank "
        "| load: device GB | read GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for counts in found:
        worst = {key: max(asdict(c)[key] for c in counts) for key in asdict(counts[0])}
        lines.append(
            f"| {worst['ranks']} | {counts[0].layout} | {worst['groups']} | {worst['peers']} "
            + "".join(f"| {worst[key] / 1e9:.2f} " for key in ("state", "save_device", "save_host"))
            + f"| {worst['files']} "
            + "".join(f"| {worst[key] / 1e9:.2f} " for key in ("load_device", "read"))
            + "|"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--ranks", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    config = load_config(Path(given.config), given.overrides)
    found = [[count(config, ranks, rank) for rank in looked_at(config, ranks)] for ranks in given.ranks]
    print(json.dumps([[asdict(c) for c in counts] for counts in found], indent=1) if given.json else table(found))


if __name__ == "__main__":
    main()
