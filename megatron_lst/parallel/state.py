"""Process groups. The only place that reads Megatron-core's global parallel state; others are handed groups."""

import datetime
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from megatron_lst.errors import UserError
from megatron_lst.machine import environment_number
from megatron_lst.parallel import cpu
from megatron_lst.parallel.layout import ParallelLayout, world_size


@dataclass(frozen=True)
class ParallelState:
    """This rank's coordinates and groups.

    Attributes:
        model_group: the ranks of one replica of the model.
        collection: Megatron-core's ProcessGroupCollection, for its modules.
        owns_world: this object started torch.distributed, and ends it.
    """

    layout: ParallelLayout
    device: torch.device
    rank: int
    world_size: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    tensor_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    data_group: dist.ProcessGroup
    model_group: dist.ProcessGroup
    embedding_group: dist.ProcessGroup | None
    collection: Any
    owns_world: bool

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.layout.pipeline - 1

    @property
    def stage_ranks(self) -> list[int]:
        """World ranks of this rank's pipeline group, by stage."""
        return dist.get_process_group_ranks(self.pipeline_group)


def ranks_of_run() -> int:
    """World size: of torch.distributed where this process has joined it, else as the launcher says."""
    return dist.get_world_size() if dist.is_initialized() else world_size()


def start_world() -> bool:
    """Join torch.distributed: from the launcher's environment, or alone. True when this call started it.

    Raises:
        UserError: the environment says that there are other ranks, and not how to meet them.
    """
    cpu.install()
    # A rank connects to those that it talks to, when it does: a mesh of all with all does not scale.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    if dist.is_initialized():
        return False
    timeout = datetime.timedelta(minutes=30)
    world, rank = world_size(), environment_number("RANK", 0)
    environment_number("LOCAL_RANK", 0)
    environment_number("MASTER_PORT", 0, least=1, most=65535)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if not os.environ.get(name)]
    if world > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={world}, but {', '.join(missing)} is not set: start the ranks with torchrun, "
            "`python -m megatron_lst.launching.agent` or `lst launch`"
        )
    if rank >= world:
        raise UserError(f"RANK={rank}: must be below WORLD_SIZE={world}")
    if "WORLD_SIZE" in os.environ and not missing:
        dist.init_process_group(cpu.backend(), timeout=timeout)
    else:
        dist.init_process_group(cpu.backend(), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return True


@contextmanager
def groups_of_members(parallel_state: Any) -> Iterator[None]:
    """Within it Megatron-core's groups are made by their members.

    By itself every rank makes every group, in step with all others: thousands of groups on some thousand ranks.
    """
    make, rank = parallel_state.create_group, dist.get_rank()
    name = patch.object(dist.distributed_c10d, "_process_group_name", _name_of_members)

    def made(ranks: Sequence[int] | None = None, *arguments: Any, **options: Any) -> Any:
        if ranks is not None and rank not in ranks:
            return None
        return make(ranks, *arguments, **{**options, "use_local_synchronization": True})

    with patch.object(parallel_state, "create_group", made), name:
        yield


_made: Counter[tuple[int, ...]] = Counter()


def _name_of_members(ranks: Sequence[int], use_hashed_name: bool) -> str:
    """Members of a group agree on its name: it follows from them, and how many groups of the same members came before.

    PyTorch's own has the number of all groups of a rank in it. Stages of a pipeline are in different numbers of groups,
    and would wait for each other under different names for ever.
    """
    key = tuple(ranks)
    _made[key] += 1
    return hashlib.sha1(f"{key} {_made[key]}".encode(), usedforsecurity=False).hexdigest()


def group_of(ranks: Sequence[int], backend: str) -> dist.ProcessGroup:
    """A group that its members alone make, each with the same call."""
    with patch.object(dist.distributed_c10d, "_process_group_name", _name_of_members):
        return dist.new_group(list(ranks), backend=backend, use_local_synchronization=True)


def start(layout: ParallelLayout, seed: int = 0) -> ParallelState:
    """Make the process groups of `layout` (collective over all ranks)."""
    # The order in which kernels reach the GPU: tensor parallelism overlaps its communication by it.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = cpu.device()
    owns_world = start_world()
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection

    with groups_of_members(parallel_state):
        parallel_state.initialize_model_parallel(
            layout.tensor,
            layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
            create_gloo_process_groups=False,
        )
    tensor_parallel.model_parallel_cuda_manual_seed(seed % 2**62)  # it adds to the seed, which has to stay 64 bits
    in_embedding_group = layout.pipeline > 1 and (
        parallel_state.get_pipeline_model_parallel_rank() in (0, layout.pipeline - 1)
    )
    return ParallelState(
        layout=layout,
        device=device,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        data_group=parallel_state.get_data_parallel_group(),
        model_group=parallel_state.get_model_parallel_group(),
        embedding_group=parallel_state.get_embedding_group(check_initialized=False) if in_embedding_group else None,
        collection=ProcessGroupCollection.use_mpu_process_groups(),
        owns_world=owns_world,
    )


def stop(state: ParallelState) -> None:
    """Leave the groups of `start`; torch.distributed too where that call started it."""
    leave_groups()
    if state.owns_world and dist.is_initialized():
        dist.destroy_process_group()


def leave_groups() -> None:
    """Forget Megatron-core's groups, which `start` made."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()


def drop_buffers() -> None:
    """Give back the buffers that Megatron-core keeps for gathers from step to step."""
    from megatron.core import parallel_state

    parallel_state.get_global_memory_buffer().buffer.clear()
