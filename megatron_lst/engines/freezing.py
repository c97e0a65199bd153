"""Warm-started weights apart from new ones, alike in both engines: `training.freeze_global_steps`, `trunk_lr_ratio`.

A frozen weight has a gradient of zero, set before the global norm is taken, and no weight decay.  So it counts neither
in the norm nor in clipping, AdamW's moments of it stay zero, and its update is exactly zero: every bit is kept, on any
layout, without a parameter that some ranks update and others do not.  Of a table whose text rows alone come from the
language model the other rows learn, without decay as long as the freeze lasts.

AdamW counts its updates from the start of the run: when the freeze ends after many steps, the zero moments make the
first update of a weight (1 - beta1) / sqrt(1 - beta2) = 0.45 of a usual one, and ten steps later it is whole.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from megatron_lst.config.schema import Config
from megatron_lst.engines.weights_io import local_parameters
from megatron_lst.parallel.state import ParallelState
from megatron_lst.weights import text_weights


def trunk_parameters(chunks: Sequence[Any], config: Config) -> set[nn.Parameter]:
    """This rank's parameters that learn at `trunk_lr_ratio` of the rate; none where it is 1.

    A baseline's tables are not among them: text shares them with speech, whose rows are new.
    """
    if config.training.trunk_lr_ratio == 1:
        return set()
    text = text_weights(config.model) if config.model.kind == "lst" else ()
    return {
        parameter
        for _, parameter, spec in local_parameters(list(chunks), config)
        if spec.names[0].startswith("global_transformer.") or spec.names[0] in text
    }


def freezable_rows(chunks: Sequence[Any], config: Config, state: ParallelState) -> dict[nn.Parameter, int]:
    """This rank's parameters that hold warm-started weights -> how many of their leading rows do.

    A shard of a table without text rows is there with 0, so that decay stops for the table on all ranks alike.
    """
    text = text_weights(config.model)
    found = {}
    for _, parameter, spec in local_parameters(list(chunks), config):
        rows = parameter.shape[0]
        if spec.names[0].startswith("global_transformer.") or (parameter.dim() == 1 and spec.names[0] in text):
            found[parameter] = rows
        elif spec.names[0] in text:
            found[parameter] = min(max(config.vocabulary.text_size - state.tensor_rank * rows, 0), rows)
    return found
