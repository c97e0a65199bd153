"""Bytes that one rank sends for a micro-batch: tensor parallelism's collectives, and the pipeline's boundary.

In a ring of t ranks a gather or a reduce-scatter of a tensor sends (t - 1) / t of it, an all-reduce twice that.  All is
counted, whatever hides behind a matrix product.  `tests/benchmarks/test_stages.py` holds it against the real model.
"""

from megatron_lst.config.schema import Config
from megatron_lst.flops.work import Work, expected_work
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import PipelineSplit

REDUCED = 2
"""An all-reduce, in gathers."""


def element_bytes(config: Config) -> float:
    return 2.0 if config.training.precision == "bf16" else 4.0


def boundary_bytes(config: Config, layout: ParallelLayout) -> float:
    """One crossing of a stage boundary, forward or backward."""
    positions = config.training.micro_batch * config.data.units / (layout.tensor if layout.sequence else 1)
    return positions * config.model.hidden * element_bytes(config)


def tensor_traffic(
    config: Config, layout: ParallelLayout, split: PipelineSplit, work: Work | None = None
) -> list[float]:
    """Bytes that a rank of each stage sends to its tensor-parallel group in one micro-batch, forward and backward.

    Args:
        work: of a micro-batch, where it is known; otherwise what is expected.
    """
    training, model = config.training, config.model
    work = work or expected_work(config) * training.micro_batch
    units = training.micro_batch * config.data.units
    # An all-reduce after attention and after SwiGLU, and of the gradients that enter each: 4.  Under sequence
    # parallelism a reduce-scatter and a gather in place of each, and the inputs gathered again for the weights'
    # gradients.  Recomputation repeats what it computes.
    layer = 10 if layout.sequence else 4 * REDUCED
    again = {"none": 0, "selective": 2, "full": 4}[training.recompute]
    stages = []
    for stage in range(layout.pipeline):
        layers = sum(split.layers[stage :: layout.pipeline])
        gathered: float = layers * (layer + again) * units * model.hidden
        if stage == 0:
            gathered += _first(config, layout, units, work, layer)
        if stage == layout.pipeline - 1:
            gathered += _last(config, layout, units, work, layer)
        stages.append(gathered * element_bytes(config) * (layout.tensor - 1) / layout.tensor)
    return stages


def _states(config: Config, work: Work, layer: int) -> float:
    """Token embedding and the encoder's layers; elements, in gathers."""
    model = config.model
    return work.encoder_tokens * model.local_hidden * (REDUCED + model.encoder_layers * layer)


def _first(config: Config, layout: ParallelLayout, units: float, work: Work, layer: int) -> float:
    """What the first stage has besides global layers: embedding and patch encoder."""
    model, sequence = config.model, layout.sequence
    if model.kind != "lst":
        return REDUCED * units * model.hidden
    d, tokens, queries = model.local_hidden, work.encoder_tokens, work.patches * model.queries
    total = _states(config, work, layer)
    total += queries * d + REDUCED * work.patches * d  # the pooled states' projection, and its input's gradient
    total += REDUCED * (2 * queries + tokens) * d  # cross-attention: output; gradients of queries' and keys' inputs
    if model.queries * d != model.hidden:
        total += work.patches * model.hidden + REDUCED * queries * d
    if sequence:  # token states brought together; the gradient of the units scattered
        total += tokens * d + units * model.hidden
    if model.text_path == "direct":
        total += REDUCED * units * model.hidden
    return total


def _last(config: Config, layout: ParallelLayout, units: float, work: Work, layer: int) -> float:
    """What the last stage has besides global layers: the encoder's replica, patch decoder and head."""
    model, sequence, chunk = config.model, layout.sequence, config.engine.loss_chunk
    lst = model.kind == "lst"
    d, tokens = (model.local_hidden, work.decoder_tokens) if lst else (model.hidden, units)
    # Whole logits come from a linear map, whose input is gathered a second time as in the layers.
    head = 3 if sequence and not 0 < chunk < tokens else 2
    total = head * tokens * d
    if not lst:
        return total
    if model.decoder_input == "embedding":
        total += REDUCED * tokens * d
    else:
        total += _states(config, work, layer) if layout.pipeline > 1 else 0.0
        if model.text_path == "direct":
            total += REDUCED * tokens * d + (2 * work.encoder_tokens * d if sequence else 0.0)
    keys = units * model.queries * d
    total += keys + (REDUCED + sequence) * units * model.hidden  # their projection, and its input's gradient
    total += REDUCED * work.text_positions * model.hidden
    cross = tokens * d * (5 if sequence else 2 * REDUCED) + REDUCED * keys
    return total + model.decoder_layers * (layer * tokens * d + cross)
