"""The last word on gradients: data-parallel reduction, replicated weights, division by the number of targets."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from torch import nn

from megatron_lst.engines.megatron.wrapper import clear_stale
from megatron_lst.parallel.state import ParallelState


def gradient_finaliser(state: ParallelState, divide: bool = True) -> Callable[..., None]:
    """What Megatron-core's schedules call after the last backward pass of a step.

    Args:
        divide: by the number of targets; False: the update does (`Optimizer`).

    The replicas of embedding and encoder on the first and last stages are summed *after* the data-parallel reduction.
    Under the distributed optimizer a rank then holds only its shard of that reduction; both stages hold the same one,
    since every replicated parameter has a bucket of its own (`shared_embedding`).
    """

    def finalise(
        model: list[nn.Module], num_tokens: torch.Tensor | None = None, pg_collection: Any = None, **options: Any
    ) -> None:
        clear_stale(model)
        finalize_model_grads(model, None, pg_collection=pg_collection, **options)
        if state.embedding_group is not None:
            for gradient in replicated_gradients(model):
                dist.all_reduce(gradient, group=state.embedding_group)
        if not divide:
            return
        assert num_tokens is not None, "the loss is summed over targets: their number is always known"
        # Only the last stage has counted targets, each data-parallel rank its own.
        dist.broadcast(num_tokens, src=state.stage_ranks[-1], group=state.pipeline_group)
        dist.all_reduce(num_tokens, group=state.data_group)
        scale = 1.0 / num_tokens.clamp(min=1).float()
        for chunk in model:
            chunk.scale_gradients(scale)  # type: ignore[operator]

    return finalise


def replicated_gradients(model: list[nn.Module]) -> list[torch.Tensor]:
    """Gradients of the weights that the first and last stages both hold, in the order of their names."""
    return [parameter.main_grad for parameter in replicated_parameters(model)]  # type: ignore[attr-defined]


def replicated_parameters(model: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The weights that the first and last stages both hold, in the order of their names."""
    found = []
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            if getattr(parameter, "shared_embedding", False):
                found.append((name, parameter))
    # Both stages walk the same order: each meets its twin.
    return [parameter for _, parameter in sorted(found, key=lambda pair: pair[0])]
