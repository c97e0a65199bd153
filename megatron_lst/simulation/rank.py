"""One rank of any layout without values: the engine on PyTorch's meta device, in a process group that is not there.

Shapes, dtypes and groups are those of the rank; collectives return at once and move nothing.  So the stage of a model
that needs hundreds of GPUs is built in a second and its schedule can be watched (`megatron_lst.simulation.trace`).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lst.config.schema import Config
from megatron_lst.parallel.layout import ParallelLayout

META = torch.device("meta")
_collectives = torch.library.Library("c10d", "IMPL")


def stage_rank(layout: ParallelLayout, stage: int) -> int:
    """The first world rank of a pipeline stage: Megatron-core numbers tensor ranks first and stages last."""
    return stage * layout.tensor * layout.data


@contextmanager
def traced_rank(config: Config, world: int = 1, rank: int = 0) -> Iterator[Any]:
    """The engine of world rank `rank` as it stands on a GPU; its tensors have no values.

    Built-in norms and attention, whatever accelerators are here, so that a trace is the same everywhere.

    Yields:
        A MegatronEngine, for `trace.trace_schedule`. It can neither step nor save.

    Raises:
        UserError: the layout cannot work on `world` ranks.
    """
    from megatron_lst.parallel.layout import check_layout

    check_layout(config, world)
    with absent_world(world, rank):
        yield engine_without_values(config)


@contextmanager
def absent_world(world: int, rank: int) -> Iterator[None]:
    """Within it this process is world rank `rank` of `world`, and its device is the meta device."""
    from megatron_lst.parallel import cpu
    from megatron_lst.parallel.state import leave_groups

    cpu.install()
    with _absent_group(world, rank), ExitStack() as patches:
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

        for owner, name, instead in (
            (cpu, "on_cpu", lambda: False),  # the settings of a GPU
            (cpu, "device", lambda: META),
            (cpu, "optimizer_types", _types_of_cuda),
            (torch.cuda, "current_device", lambda: META),
            (torch, "zeros", _without_values(torch.zeros)),
            # Around regions of sequence parallelism random states are compared, on the host; nothing draws from them.
            (CudaRNGStatesTracker, "fork", lambda *_: nullcontext()),
        ):
            patches.enter_context(patch.object(owner, name, instead))
        try:
            yield
        finally:
            leave_groups()


def engine_without_values(config: Config, *, layout: ParallelLayout | None = None, fresh: bool = False) -> Any:
    """As `engines.build_engine`, in an `absent_world`: a MegatronEngine whose optimizer has its state."""
    from megatron_lst.engines.megatron.engine import MegatronEngine
    from megatron_lst.engines.megatron.optimizer_state import prime

    plain = replace(config.engine, norm="torch", attention="lst_kernels")
    built = MegatronEngine(replace(config, engine=plain), layout=layout, fresh=False)
    prime(built.optimizer.core)
    return built


@contextmanager
def _absent_group(world: int, rank: int) -> Iterator[None]:
    """torch.distributed as one rank sees it, on PyTorch's own fake backend: nobody answers and nothing waits."""
    from torch._C._distributed_c10d import FakeWork
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for name in (
        "allreduce_coalesced_",
        "reduce_scatter_tensor_coalesced_",
        "allgather_into_tensor_coalesced_",
        "alltoall_base_",
    ):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"c10d::{name}", "Meta"):
            _collectives.impl(name, lambda *_: FakeWork().boxed(), "Meta")
    assert not dist.is_initialized(), "a trace needs a process of its own, or one that has left its group"
    new_group = dist.new_group
    with (
        patch.dict(dist.Backend.backend_capability, {"fake": ["cpu", "cuda", "meta"]}),
        # Megatron-core asks for gloo groups besides, for checkpoints; a rank alone cannot join one.
        patch.object(dist, "new_group", lambda *a, backend=None, **options: new_group(*a, **options)),
    ):
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        try:
            yield
        finally:
            dist.destroy_process_group()


def _without_values(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The factory, its literal device="cuda" (the schedules' counters) read as the meta device."""

    def made(*shape: Any, device: Any = None, **options: Any) -> Tensor:
        if device is not None and torch.device(device).type == "cuda":
            device = META
        return factory(*shape, device=device, **options)

    return made


@contextmanager
def _types_of_cuda() -> Iterator[None]:
    """Tensors call themselves `torch.cuda.FloatTensor` and so on, as in `parallel.cpu.optimizer_types`."""
    plain = torch.Tensor.type

    def named(self: Tensor, dtype: Any = None, *arguments: Any, **options: Any) -> Any:
        if dtype is not None:
            return plain(self, dtype, *arguments, **options)
        return plain(self).replace("torch.meta.", "torch.cuda.")

    with patch.object(torch.Tensor, "type", named):
        yield


def emptied(thing: Any) -> Any:
    """A copy whose tensors, its own and those of dataclasses in it, have lost their values."""
    if isinstance(thing, Tensor):
        return thing.to(META)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: emptied(getattr(thing, f.name)) for f in fields(thing)})
    return thing


def tensors_of(thing: Any) -> list[Tensor]:
    """The tensors of a dataclass and of dataclasses in it."""
    values = [getattr(thing, f.name) for f in fields(thing)]
    own = [v for v in values if isinstance(v, Tensor)]
    return own + [t for v in values if is_dataclass(v) for t in tensors_of(v)]


def state_tensors(engine: Any) -> dict[str, list[Tensor]]:
    """What the rank holds between steps: "weights", "gradients" and "optimizer" (masters and AdamW's two moments)."""
    core = engine.optimizer.core
    masters = [p for group in core.param_groups for p in group["params"]]
    moments = [t for part in core.chained_optimizers for state in part.optimizer.state.values() for t in state.values()]
    weights = [p.data for chunk in engine.chunks for p in chunk.parameters()]
    return {
        "weights": weights,
        "gradients": [buffer.grad_data for chunk in engine._wrapped for buffer in chunk.buffers],
        "optimizer": [*masters, *moments],
    }


def state_bytes(engine: Any) -> dict[str, int]:
    """Bytes of each of the `state_tensors`; what two share counts for the first."""
    seen: set[int] = set()
    found = {}
    for name, tensors in state_tensors(engine).items():
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.device == META}
        found[name] = sum(size for key, size in storages.items() if key not in seen)
        seen |= set(storages)
    return found
