"""A step on tensors without values: the operators and collectives of any rank, at any size, without a GPU.

The real engine's pipeline schedule runs on PyTorch's meta device (`simulation.rank`), where a tensor has a shape and no
contents.  Whoever reads a value there fails: a traced step provably never makes the host wait for the device, and no
shape in it depends on data.  Bytes are those that a GPU's allocator would hand out.  Kernels of `lst_kernels` are the
operators that a GPU runs.
"""

import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from megatron_lst.patching.row import Row
from megatron_lst.simulation.rank import META, emptied, state_tensors, tensors_of

_KINDS = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}


ONLY_WRITTEN = {"lst_kernels.adamw": "copies", "lst_kernels.put_product": "into"}
"""Arguments, by operator, that are written and not read."""


@dataclass(frozen=True)
class Operation:
    """One operator call that moves data.

    Attributes:
        name: as in `aten.mm`.
        phase: "forward" or "backward" pass of a micro-batch, "" outside of both.
        shapes: of its tensors, inputs first; outputs: of its outputs alone.
        bytes: read and written, each tensor once.
        flops: of matrix products; 0 elsewhere, and for attention, whose work depends on values.
    """

    name: str
    phase: str
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    bytes: int
    flops: int


@dataclass(frozen=True)
class Collective:
    """One communication of the rank with others; groups of one rank are left out.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "broadcast", "send" or "receive".
        group: "tensor", "data", "pipeline" or "embedding" (first and last stage).
        ranks: of the group.
        phase: as of an Operation.
        bytes: of the whole tensor: what is gathered, or what is reduced before it is scattered.
    """

    kind: str
    group: str
    ranks: int
    phase: str
    bytes: int

    @property
    def wire(self) -> float:
        """Bytes that this rank sends, in a ring; it receives as many. A receive counts for its sender."""
        share = {"all-reduce": 2 * (self.ranks - 1) / self.ranks, "send": 1, "broadcast": 1, "receive": 0}
        return self.bytes * share.get(self.kind, (self.ranks - 1) / self.ranks)


@dataclass
class Trace:
    """What a rank does in the micro-batches of a step.

    Attributes:
        operations: in order; views move nothing and are left out.
        collectives: in order.
        kept: most bytes alive as a backward pass begins, over all micro-batches in flight; weights, gradients and batch
            left out.
        peak_forward: most bytes alive at once in a forward pass; peak: at any time.
        passes: "F" and "B" of this rank's model chunks, in order.
    """

    operations: list[Operation] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    kept: int = 0
    peak_forward: int = 0
    peak: int = 0
    passes: str = ""


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, known: Sequence[Tensor], groups: dict[tuple[int, ...], str]) -> None:
        super().__init__()
        self.trace, self.live, self.phase, self.groups = trace, 0, "", groups
        self.storages = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "c10d":
            self._communicated(func, args)
            return result
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        strangers = {str(t.device) for t in outputs if t.device != META and t.numel() > 1}
        assert not strangers, f"{func} made a tensor on {strangers}: the batch and the weights are without values"
        before = {t.untyped_storage()._cdata for t in inputs}
        fresh = [t for t in outputs if t.untyped_storage()._cdata not in before]
        for tensor in fresh:
            self._watch(tensor.untyped_storage())
        if not outputs and func._schema.is_mutable:  # an operator of our own that writes into an argument
            marks = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
            written = [value for value, mark in zip(args, marks, strict=False) if mark]
            outputs = [t for t in tree_leaves(written) if isinstance(t, Tensor)]
        if outputs and (fresh or func._schema.is_mutable):
            name = str(func).removesuffix(".default")
            count = flop_registry.get(func.overloadpacket)
            self.trace.operations.append(
                Operation(
                    name,
                    self.phase,
                    tuple(tuple(t.shape) for t in (*inputs, *outputs)),
                    tuple(tuple(t.shape) for t in outputs),
                    _traffic(name, inputs, outputs) - _unread(name, func, args),
                    int(count(*args, **kwargs, out_val=result)) if count else 0,
                )
            )
        self.trace.peak = max(self.trace.peak, self.live)
        if self.phase == "forward":
            self.trace.peak_forward = max(self.trace.peak_forward, self.live)
        return result

    def _communicated(self, func: Any, args: Sequence[Any]) -> None:
        boxed = next(a for a in args if isinstance(a, torch.ScriptObject) and "ProcessGroup" in str(a._type()))
        ranks = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(boxed)))
        if len(ranks) == 1:
            return
        kind = _KINDS[func._schema.name.removeprefix("c10d::")]
        # Between two stages one of the directions goes through the group of all ranks.
        group = "pipeline" if kind in ("send", "receive") else self.groups[ranks]
        tensors = [[t for t in tree_leaves(a) if isinstance(t, Tensor)] for a in args]
        size = max(sum(t.numel() * t.element_size() for t in part) for part in tensors)
        self.trace.collectives.append(Collective(kind, group, len(ranks), self.phase, size))

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.live += size
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size

    def watch(self, phase: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """One of the schedule's steps; as a backward pass begins, all that is alive is kept for it or a later one."""

        def watched(*arguments: Any, **options: Any) -> Any:
            if phase == "backward":
                self.trace.kept = max(self.trace.kept, self.live)
            self.trace.passes += phase[0].upper()
            self.phase = phase
            try:
                return run(*arguments, **options)
            finally:
                self.phase = ""

        return watched


def _traffic(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes read and written. Of a table that is looked up only the rows that are read."""
    written = sum(t.numel() * t.element_size() for t in outputs)
    if name.startswith(("aten.embedding", "aten.index", "aten.gather", "aten.empty", "aten.zero", "aten.fill")):
        return (1 if name.startswith(("aten.empty", "aten.zero", "aten.fill")) else 2) * written
    return written + sum(t.numel() * t.element_size() for t in inputs)


def _unread(name: str, func: Any, args: Sequence[Any]) -> int:
    """Bytes of arguments that are written without being read."""
    wanted = ONLY_WRITTEN.get(name)
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} if wanted else {}
    return sum(t.numel() * t.element_size() for t in tree_leaves(named.get(wanted)) if isinstance(t, Tensor))


def trace_update(engine: Any) -> list[Operation]:
    """The update's operators on this rank, after `trace_schedule`; the gradients' norm, whose value is read, is not."""
    from megatron_lst.parallel import cpu

    recorder = _Recorder(Trace(), [t for tensors in state_tensors(engine).values() for t in tensors], {})
    with cpu.optimizer_types(), torch.no_grad():
        engine.optimizer.core.prepare_grads()
        with recorder:
            engine.optimizer.core.step_with_ready_grads()
    return recorder.trace.operations


def trace_schedule(engine: Any, rows: Sequence[Row]) -> Trace:
    """The pipeline schedule of one step on this rank, its reduction of gradients included; AdamW is not.

    Args:
        engine: of `megatron_lst.simulation.rank.traced_rank`.
        rows: this data-parallel rank's, a multiple of `training.micro_batch`.

    Raises:
        RuntimeError: something reads a value.
    """
    from megatron.core.pipeline_parallel import schedules

    from megatron_lst.model import batch
    from megatron_lst.parallel.state import drop_buffers

    state, trace = engine.state, Trace()
    named = {
        "tensor": state.tensor_group,
        "data": state.data_group,
        "pipeline": state.pipeline_group,
        "embedding": state.embedding_group,
    }
    groups = {tuple(dist.get_process_group_ranks(g)): name for name, g in reversed(named.items()) if g is not None}
    parts = engine.pack(rows).batches
    batches = [emptied(batch.to_device(part, torch.device("cpu"))) for part in parts]
    known = [t for tensors in state_tensors(engine).values() for t in tensors]
    recorder = _Recorder(trace, [*known, *(t for made in batches for t in tensors_of(made))], groups)

    def run(count: int) -> None:
        for chunk in engine._wrapped:
            chunk.train()
            chunk.zero_grad_buffer()
        drop_buffers()  # so that the buffers of gathers are counted
        ready = iter(batches)
        with patch.object(batch, "to_device", lambda *_: next(ready)):
            engine._schedule(parts[:count], engine._training_loss, forward_only=False)

    # In a first step Megatron-core learns in what order gradients come: only then it overlaps their reduction.
    run(engine.layout.pipeline if engine.layout.virtual > 1 else 1)
    with (
        patch.object(schedules, "forward_step", recorder.watch("forward", schedules.forward_step)),
        patch.object(schedules, "backward_step", recorder.watch("backward", schedules.backward_step)),
        recorder,
    ):
        run(len(parts))
    return trace


def dense(trace: Trace, widths: Collection[int]) -> list[Operation]:
    """Operations whose output has two axes that are no feature: both run over tokens, units or keys.

    Args:
        widths: sizes of the weights' axes, and of a chunk of logits.
    """
    return [
        op for op in trace.operations for shape in op.outputs if sum(s >= 400 and s not in widths for s in shape) > 1
    ]
