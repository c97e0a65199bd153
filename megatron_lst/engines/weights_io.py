"""Canonical weights in and out of the shards: initial values, `load_weights`, `export_weights`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lst.config.schema import Config
from megatron_lst.initialisation import Initialiser
from megatron_lst.model.sharding import ShardSpec, shard_spec
from megatron_lst.parallel.state import ParallelState
from megatron_lst.weights import canonical_shapes


def local_parameters(chunks: list[Any], config: Config) -> Iterator[tuple[str, nn.Parameter, ShardSpec]]:
    """This rank's parameters, by their name in the chunk, with what they are made of."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            yield name, parameter, shard_spec(name, config, chunk.first_layer)


def initial_shards(
    initialiser: Initialiser, shapes: Mapping[str, tuple[int, ...]], state: ParallelState
) -> Callable[[ShardSpec], Tensor]:
    """Gives the initial value of a local parameter, drawn for this rank alone: float32 on the CPU.

    Args:
        shapes: of all canonical weights.
    """

    def shard(spec: ShardSpec) -> Tensor:
        # Of each canonical weight the rows and columns that this rank holds.
        blocks = spec.blocks([shapes[name] for name in spec.names], state.tensor_rank, state.layout.tensor)
        drawn = [initialiser.part(name, shapes[name], rows, columns) for name, rows, columns in blocks]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)  # q, k and v, or gate and up, lie in one parameter

    return shard


def given_shards(weights: Mapping[str, Tensor], state: ParallelState) -> Callable[[ShardSpec], Tensor]:
    """Gives a local parameter, cut out of full canonical weights."""
    return lambda spec: spec.cut([weights[name] for name in spec.names], state.tensor_rank, state.layout.tensor)


@torch.no_grad()
def set_weights(
    chunks: list[Any],
    config: Config,
    shard: Callable[[ShardSpec], Tensor],
    masters: Mapping[nn.Parameter, tuple[Tensor, slice]],
) -> None:
    """Set every local parameter and its fp32 master, one parameter at a time.

    Args:
        shard: gives a local parameter, fp32. The master takes it as it is; a bf16 parameter is rounded from it.
        masters: see `optimizer_state.master_parts`.
    """
    for _, parameter, spec in local_parameters(chunks, config):
        value = shard(spec)  # fp32, in the shape of the parameter
        parameter.copy_(value)
        if parameter in masters:
            master, mine = masters[parameter]
            master.copy_(value.reshape(-1)[mine])  # the distributed optimizer holds a slice of the flat parameter


@torch.no_grad()
def collect_weights(
    chunks: list[Any],
    config: Config,
    state: ParallelState,
    fetch: Callable[[nn.Parameter, str, int], Tensor | None],
) -> dict[str, Tensor] | None:
    """Full fp32 weights on rank 0, None elsewhere; collective.

    Each stage joins its shards over the tensor-parallel group and sends them to rank 0, one parameter at a time.
    Ranks of the other data-parallel replicas give their pieces of the masters and wait.

    Args:
        fetch: gives a parameter's fp32 "master" on one data-parallel rank; a bf16 model's own values are rounded.
    """
    shapes = canonical_shapes(config)
    mine: dict[str, Tensor] = {}
    for _, parameter, spec in local_parameters(chunks, config):
        if getattr(parameter, "shared", False):
            continue  # the last stage's copy of embedding and encoder: the first stage gives them
        value = fetch(parameter, "master", 0)
        if value is None:
            continue
        value = value.contiguous()  # fp32, this rank's shard
        shards = [value]
        if state.layout.tensor > 1 and spec.kind != "whole":
            shards = [torch.empty_like(value) for _ in range(state.layout.tensor)]
            dist.all_gather(shards, value, group=state.tensor_group)  # in the order of tensor-parallel ranks
        if state.tensor_rank == 0:
            full = spec.join(shards, [shapes[n] for n in spec.names])  # one canonical weight for each of its names
            mine.update({n: w.cpu().clone() for n, w in zip(spec.names, full, strict=True)})
    if state.tensor_rank != 0 or state.data_rank != 0:
        return None
    return _gather_stages(mine, shapes, state)


def _gather_stages(
    mine: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], state: ParallelState
) -> dict[str, Tensor] | None:
    """The weights of all stages on the first one; the pipeline group of tensor-parallel rank 0 takes part."""
    stages = state.layout.pipeline
    if stages > 1:
        names: list[list[str] | None] = [None] * stages  # canonical, by stage
        dist.all_gather_object(names, list(mine), group=state.pipeline_group)
        for stage in range(1, stages):
            for name in names[stage] or ():
                # gloo and nccl send in order: both sides walk the same names
                if state.pipeline_rank == stage:
                    dist.send(mine[name].to(state.device), state.stage_ranks[0], group=state.pipeline_group)
                elif state.pipeline_rank == 0:
                    buffer = torch.empty(shapes[name], device=state.device)
                    dist.recv(buffer, state.stage_ranks[stage], group=state.pipeline_group)
                    mine[name] = buffer.cpu()
    if state.pipeline_rank != 0:
        return None
    assert set(mine) == set(shapes), "every canonical weight lives on some stage"
    return {name: mine[name] for name in shapes}
