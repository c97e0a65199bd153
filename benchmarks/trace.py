"""One micro-batch on tensors without values: the operators that a GPU would run, at any size, without a GPU.

The real model's forward and backward pass run on PyTorch's meta device, where a tensor has a shape and no contents.
Whoever reads a value there fails: a traced step provably never makes the host wait for the device, and no shape in it
depends on data.  Bytes are those that a GPU's allocator would hand out.  RMSNorm and SwiGLU are one kernel on a GPU and
several operators elsewhere, so a stand-in of one operator takes the place of each.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from megatron_lst.config.schema import Config
from megatron_lst.patching.row import Row

META = torch.device("meta")
_library = torch.library.Library("lst_trace", "FRAGMENT")


def _stand_in(schema: str, shapes: Callable[..., Any]) -> Any:
    """A new operator without arithmetic: `shapes` makes its outputs."""
    name = _library.define(schema)
    _library.impl(name, shapes, "Meta")
    return getattr(torch.ops.lst_trace, name)


def _with_scale(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


_norm = _stand_in("rms_norm(Tensor x, Tensor weight) -> (Tensor, Tensor)", _with_scale)
_norm_back = _stand_in(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor scale) -> (Tensor, Tensor)",
    lambda grad, x, weight, scale: (torch.empty_like(x), torch.empty_like(weight)),
)
_swiglu = _stand_in("swiglu(Tensor x) -> Tensor", lambda x: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)))
_swiglu_back = _stand_in("swiglu_backward(Tensor grad, Tensor x) -> Tensor", lambda grad, x: torch.empty_like(x))


class _FusedNorm(torch.autograd.Function):
    """Keeps what PyTorch's fused RMSNorm keeps: its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        out, scale = _norm(x, weight)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return _norm_back(grad, *ctx.saved_tensors)


@contextmanager
def traced_model(config: Config) -> Iterator[Any]:
    """The whole model of `config` on the meta device, as one GPU without tensor or pipeline parallelism holds it.

    Yields:
        A ModelChunk: called with a `traced_batch` it gives the losses [N].
    """
    from megatron_lst.parallel import cpu
    from megatron_lst.parallel import state as parallel
    from megatron_lst.parallel.layout import check_layout
    from megatron_lst.parallel.split import pipeline_split

    state = parallel.start(check_layout(config, 1))
    try:
        from megatron.core.fusions import fused_bias_swiglu

        from megatron_lst.model.layers import RMSNorm
        from megatron_lst.model.model import build_chunk

        with patch.object(cpu, "on_cpu", lambda: False):  # the settings of a GPU
            chunk = build_chunk(config, state, pipeline_split(config, 1, 1), 0).to(META)
        with (
            patch.object(RMSNorm, "forward", lambda self, x: _FusedNorm.apply(x, self.weight)),
            patch.object(fused_bias_swiglu, "swiglu", _swiglu),
            patch.object(fused_bias_swiglu, "swiglu_back", _swiglu_back),
        ):
            yield chunk
    finally:
        parallel.stop(state)


def traced_batch(rows: Sequence[Row], config: Config) -> Any:
    """A Batch of rows whose tensors have lost their values."""
    from megatron_lst.model.batch import make_batch

    return _without_values(make_batch(rows, config, torch.device("cpu")))


def _without_values(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.to(META)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: _without_values(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
        return dataclasses.replace(thing, **fields)
    return thing


@dataclass(frozen=True)
class Operation:
    """One operator call that moves data.

    Attributes:
        name: as in `aten.mm`.
        backward: whether it belongs to the backward pass.
        shapes: of its tensors, inputs first; outputs: of its outputs alone.
        bytes: read and written, each tensor once.
        flops: of matrix products; 0 elsewhere, and for attention, whose work depends on values.
    """

    name: str
    backward: bool
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    bytes: int
    flops: int


@dataclass
class Trace:
    """What a micro-batch does.

    Attributes:
        operations: in order; views move nothing and are left out.
        kept: bytes alive between forward and backward, model and batch left out.
        peak: most bytes alive at once in the forward pass and in the whole micro-batch, weight gradients among them.
    """

    operations: list[Operation] = field(default_factory=list)
    kept: int = 0
    peak_forward: int = 0
    peak: int = 0


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.trace, self.live, self.backward = trace, 0, False
        self.storages = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        strangers = {str(t.device) for t in outputs if t.device != META and t.numel() > 1}
        assert not strangers, f"{func} made a tensor on {strangers}: the batch and the weights are without values"
        before = {t.untyped_storage()._cdata for t in inputs}
        fresh = [t for t in outputs if t.untyped_storage()._cdata not in before]
        for tensor in fresh:
            self._watch(tensor.untyped_storage())
        if outputs and (fresh or func._schema.is_mutable):
            name = str(func).removesuffix(".default")
            count = flop_registry.get(func.overloadpacket)
            self.trace.operations.append(
                Operation(
                    name,
                    self.backward,
                    tuple(tuple(t.shape) for t in (*inputs, *outputs)),
                    tuple(tuple(t.shape) for t in outputs),
                    _traffic(name, inputs, outputs),
                    int(count(*args, **kwargs, out_val=result)) if count else 0,
                )
            )
        self.trace.peak = max(self.trace.peak, self.live)
        return result

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


def _traffic(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes read and written. Of a table that is looked up only the rows that are read."""
    written = sum(t.numel() * t.element_size() for t in outputs)
    if name.startswith(("aten.embedding", "aten.index", "aten.gather", "aten.empty", "aten.zeros", "aten.fill")):
        return (1 if name.startswith(("aten.empty", "aten.zeros", "aten.fill")) else 2) * written
    return written + sum(t.numel() * t.element_size() for t in inputs)


def trace_micro_batch(chunk: Any, batch: Any) -> Trace:
    """Forward and backward pass of one micro-batch.

    Raises:
        RuntimeError: something reads a value.
    """
    trace = Trace()
    recorder = _Recorder(trace, [*chunk.parameters(), *_tensors(batch)])
    with recorder:
        losses = chunk(batch)
        trace.kept, trace.peak_forward = recorder.live, trace.peak
        recorder.backward = True
        losses.sum().backward()
    for parameter in chunk.parameters():
        parameter.grad = None
    return trace


def _tensors(batch: Any) -> list[Tensor]:
    values = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    own = [v for v in values if isinstance(v, Tensor)]
    return own + [t for v in values if dataclasses.is_dataclass(v) for t in _tensors(v)]
