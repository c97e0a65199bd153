"""What `save` writes and `load` reads: Megatron-core's torch_dist format, every tensor in the shape of a weight.

    model.json      the canonical weights' shapes, to refuse another model's checkpoint in words
    metadata.json, .metadata, common.pt, *.distcp     dist_checkpointing's own

Tensors are keyed by canonical position, not by rank: `model.NAME` holds the weight, `master.NAME`, `exp_avg.NAME` and
`exp_avg_sq.NAME` the optimizer's state, fully reshardable over TP, PP and DP, with or without the distributed
optimizer.  Nothing of the model draws random numbers while it trains; the generator's state is kept all the same.
"""

import inspect
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from megatron_lst.config.schema import Config
from megatron_lst.engines.weights_io import local_parameters
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.model.sharding import ShardSpec
from megatron_lst.parallel.children import end_with_parent, forked_children_end_with_this_process
from megatron_lst.parallel.state import ParallelState
from megatron_lst.terminal import STOP_SIGNALS
from megatron_lst.weights import canonical_shapes

SHAPES = "model.json"
MODEL, MASTER, STATES = "model", "master", ("exp_avg", "exp_avg_sq")
"""What is kept of each parameter: the weight, its fp32 master, AdamW's two moments."""
_GLOBAL = "global_transformer.layers."


class ShardedCheckpoint:
    """Saves and loads one engine's chunks and optimizer.

    Args:
        tensors: gives and takes the tensors of every parameter, see `optimizer_state.CoreTensors`.
    """

    def __init__(self, config: Config, state: ParallelState, chunks: list[Any], tensors: Any) -> None:
        self._config, self._state, self._chunks, self._tensors = config, state, chunks, tensors
        self._queue: Any = None

    def save(self, folder: Path, asynchronous: bool) -> None:
        """Write into an existing, empty folder; collective. Asynchronous: only the snapshot is taken now."""
        contents, _ = self._contents(self._tensors.gather())
        contents["adam_step"] = self._tensors.get_step()
        contents["rng"] = ShardedObject("rng", torch.get_rng_state(), (1,), (0,), replica_id=self._state.rank)
        options: dict[str, Any] = {"async_sharded_save": asynchronous}
        if asynchronous and "async_strategy" in inspect.signature(dist_checkpointing.save).parameters:
            options["async_strategy"] = "mcore"  # newer releases default to a package that may not be there
        _start_helper()
        request = dist_checkpointing.save(contents, str(folder), self._strategy(), **options)
        if self._state.rank == 0:  # only now: the folder has to be empty when the save begins
            shapes = {name: list(shape) for name, shape in canonical_shapes(self._config).items()}
            (folder / SHAPES).write_text(json.dumps({"kind": self._config.model.kind, "weights": shapes}, indent=1))
        if asynchronous:
            if self._queue is None:
                from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

                self._queue = AsyncCallsQueue()
            self._queue.schedule_async_request(request)

    def _strategy(self) -> Any:
        """Data-parallel replicas share the writing."""
        from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
        from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

        strategy = get_default_save_sharded_strategy()
        if self._state.layout.data == 1:
            return strategy
        return FullyParallelSaveStrategyWrapper(strategy, self._state.data_group)

    def finish(self, wait: bool) -> bool:
        """True when no asynchronous save is under way any more; the same on every rank."""
        if self._queue is None:
            return True
        self._queue.maybe_finalize_async_calls(blocking=wait)
        return self._queue.get_num_unfinalized_calls() == 0

    def load(self, folder: Path) -> None:
        """Read what `save` wrote on any layout.

        Raises:
            UserError: another model's checkpoint; lists what differs.
            DamagedDataError: files are missing or unreadable.
        """
        self._check_model(folder)
        states = self._tensors.targets()
        contents, targets = self._contents(states)
        contents["rng"] = ShardedObject("rng", None, (1,), (0,), replica_id=self._state.rank)
        try:
            loaded = dist_checkpointing.load(contents, str(folder))
        # CheckpointException is a BaseException: no broader clause would catch it.
        except (CheckpointException, CheckpointingException, OSError, RuntimeError, LookupError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise DamagedDataError(f"The checkpoint {folder} cannot be read: {reason[0].strip()}") from error
        with torch.no_grad():
            for key, target in targets.items():
                target.copy_(loaded["tensors"][key])
        self._tensors.scatter(states, int(loaded["adam_step"]))
        torch.set_rng_state(loaded["rng"])

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

    def _contents(self, states: dict[nn.Parameter, dict[str, Tensor]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The sharded state dict, and the local tensor behind each of its keys."""
        tensors: dict[str, ShardedTensor] = {}
        targets: dict[str, Tensor] = {}
        for chunk in self._chunks:
            for name, parameter, spec in local_parameters([chunk], self._config):
                key = _global_name(name, chunk.first_layer)
                for kind, value in states[parameter].items():
                    for sub, part, sharded in self._shards(f"{kind}.{key}", value, spec, parameter):
                        tensors[sub], targets[sub] = sharded, part
        return {"tensors": tensors}, targets

    def _shards(
        self, key: str, value: Tensor, spec: ShardSpec, parameter: nn.Parameter
    ) -> Iterator[tuple[str, Tensor, ShardedTensor]]:
        rank, size = self._state.tensor_rank, self._state.layout.tensor
        copy = int(getattr(parameter, "shared", False))
        whole = spec.kind == "whole"
        replica = (copy, rank if whole else 0, self._state.data_rank)
        offsets = [] if whole else [(1 if spec.kind == "row" else 0, rank, size)]
        parts = [(key, value)]
        if spec.kind == "stacked":
            parts = list(zip(_halves(key), value.chunk(2), strict=True))
        for sub, part in parts:
            yield sub, part, ShardedTensor.from_rank_offsets(sub, part, *offsets, replica_id=replica)


def _halves(key: str) -> tuple[str, str]:
    """Keys of a stacked parameter's two matrices, which are stored apart: their shards depend on the layout."""
    if "kv_proj" in key:
        return key.replace("kv_proj", "k_proj"), key.replace("kv_proj", "v_proj")
    return f"{key}.gate", f"{key}.up"


def _global_name(name: str, first_layer: int) -> str:
    """A parameter's name in its chunk -> its name in the whole model."""
    if not name.startswith(_GLOBAL):
        return name
    layer, rest = name[len(_GLOBAL) :].split(".", 1)
    return f"{_GLOBAL}{int(layer) + first_layer}.{rest}"


def _start_helper() -> None:
    """Start the process that collects what Megatron's writers report; it stays for the life of the rank, no longer.

    It must not hear the signals that tell ranks to save and leave, which schedulers send to every process of a job:
    without it the save fails. What is ignored when a process starts stays ignored in it.
    """
    forked_children_end_with_this_process()
    main = threading.current_thread() is threading.main_thread()
    if not main or getattr(filesystem_async, "_results_queue", "no such thing in this release") is not None:
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        resource_tracker.ensure_running()
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        manager.start(end_with_parent, (os.getpid(),))
        filesystem_async._results_queue = manager.Queue()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
