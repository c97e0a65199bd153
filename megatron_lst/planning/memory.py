"""Bytes on one accelerator, stage by stage: weights, gradients, optimizer, activations, logits.

Legend: d width, f SwiGLU width, t tensor-parallel ranks, e bytes of an element, n positions (tokens or units).
"""

from dataclasses import dataclass

from megatron_lst.config.schema import Config
from megatron_lst.flops import module_parameters
from megatron_lst.flops.work import Work, expected_work
from megatron_lst.parallel.layout import Layout
from megatron_lst.parallel.split import PipelineSplit

RUNTIME = 3e9
"""CUDA context, NCCL buffers, workspaces."""
TOKEN_SPREAD = 1.1
"""Micro-batches have more tokens than the average; balanced dealing keeps them near it."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank of one pipeline stage. The first three are exact, the others estimated.

    Attributes:
        weights, gradients, optimizer: as the engine keeps them (bf16: 2 + 4 + 12 bytes a parameter, the last sharded).
        activations: kept for the backward pass, over all micro-batches in flight.
        logits: of one micro-batch, with what the loss keeps.
        runtime: everything that is not a tensor of ours.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    runtime: float = RUNTIME

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.runtime


def stage_parameters(config: Config, layout: Layout, split: PipelineSplit) -> list[float]:
    """Parameters on one rank of each stage, replicas included; norms are counted as if they were sharded too."""
    counts = module_parameters(config)
    chunks = layout.pipeline * layout.virtual
    layer = counts["global"] / config.model.layers
    stages = [0.0] * layout.pipeline
    for chunk in range(chunks):
        stages[chunk % layout.pipeline] += split.layers[chunk] * layer
    first = sum(counts.get(name, 0) for name in ("embedding", "encoder", "text_embedding"))
    stages[0] += first
    stages[-1] += sum(counts.get(name, 0) for name in ("decoder", "head", "text_head"))
    if layout.pipeline > 1 and config.model.kind == "lst" and config.model.decoder_input == "encoder":
        model, d = config.model, config.model.local_hidden
        block = 4 * d * d + 3 * d * model.local_ffn_size + 2 * d
        stages[-1] += counts["embedding"] + model.encoder_layers * block
    return [stage / layout.tensor for stage in stages]


def state_bytes(config: Config, layout: Layout, parameters: float) -> tuple[float, float, float]:
    """(weights, gradients, optimizer) of `parameters` on one rank."""
    element = 2.0 if config.training.precision == "bf16" else 4.0
    # Adam's two moments, and fp32 master weights where the model's are bf16.
    optimizer = parameters * (12.0 if config.training.precision == "bf16" else 8.0)
    weights, gradients = parameters * element, parameters * 4.0
    engine = config.engine
    if engine.name == "megatron":
        return weights, gradients, optimizer / (layout.data if engine.distributed_optimizer else 1)
    if engine.zero_stage >= 1:
        optimizer /= layout.data
    if engine.zero_stage >= 2:
        gradients /= layout.data
    if engine.zero_stage >= 3:
        weights /= layout.data
    return weights, gradients, 0.0 if engine.offload_optimizer else optimizer


@dataclass(frozen=True)
class LayerShape:
    """What one pre-norm layer's kept tensors follow from.

    Attributes:
        d, f: width, and width of the SwiGLU.
        kv_ratio: key/value heads for each attention head.
        fused: norm and activation are one kernel each, as on a GPU; elsewhere they keep their steps.
    """

    d: int
    f: int
    kv_ratio: float = 1.0
    fused: bool = True


def layer_activations(shape: LayerShape, n: float, e: float, layout: Layout, recompute: str = "none") -> float:
    """Bytes that one layer keeps for its backward pass over n positions.

    Args:
        recompute: `selective` recomputes the SwiGLU and attention with its rotary embedding, `full` the layer.
    """
    d, t = shape.d, layout.tensor
    whole = d / (t if layout.sequence else 1)
    if recompute == "full":
        return n * e * whole
    # Input and output of both norms; the normed input too, where the norm is not one kernel.
    norms = (4 if shape.fused else 6) * whole
    # The output, and the projection's whole output, which the values are a view of; turned queries and keys, or what
    # they are computed from again: views, but for queries that share their keys.
    turned = 1 + shape.kv_ratio if recompute != "selective" else float(shape.kv_ratio < 1)
    attention = (2 + 2 * shape.kv_ratio + turned) * d / t
    # Both halves of the projection and their product; and the steps between, where it is not one kernel.
    mlp = 0.0 if recompute == "selective" else (3 if shape.fused else 5) * shape.f / t
    return n * e * (norms + attention + mlp)


def cross_activations(d: int, queries: float, keys: float, e: float, layout: Layout, fused: bool = True) -> float:
    """Bytes that one cross-attention keeps: inputs and normed outputs of both sides, q, k, v, output.

    The keys' input is shared by all layers and is counted by the caller.
    """
    whole = d / (layout.tensor if layout.sequence else 1)
    steps = 0 if fused else 1
    return e * (
        queries * ((2 + steps) * whole + 2 * d / layout.tensor) + keys * ((1 + steps) * d + 2 * d / layout.tensor)
    )


def in_flight(layout: Layout, stage: int, micro_batches: int) -> float:
    """Micro-batches whose activations a stage keeps at once, in whole micro-batches (1F1B, interleaved too)."""
    if layout.pipeline == 1:
        return 1.0
    if layout.virtual == 1:
        return float(min(layout.pipeline - stage, micro_batches))
    chunks = (layout.pipeline - stage - 1) * 2 + (layout.virtual - 1) * layout.pipeline + 1
    return min(chunks, micro_batches * layout.virtual) / layout.virtual


def stage_memory(config: Config, layout: Layout, split: PipelineSplit, fused: bool = True) -> list[Memory]:
    """Memory of one rank of each pipeline stage."""
    model, training = config.model, config.training
    e = 2.0 if training.precision == "bf16" else 4.0
    units = training.micro_batch * config.data.units
    work = expected_work(config) * (training.micro_batch * (TOKEN_SPREAD if model.kind == "lst" else 1.0))
    micro_batches = training.global_batch // (training.micro_batch * layout.data)
    parameters = stage_parameters(config, layout, split)
    shape = global_shape(config, fused)
    layer = layer_activations(shape, units, e, layout, training.recompute)
    live = layer_activations(shape, units, e, layout) if training.recompute == "full" else 0.0
    stages = []
    for stage in range(layout.pipeline):
        flying = in_flight(layout, stage, micro_batches)
        first, last = stage == 0, stage == layout.pipeline - 1
        kept = layer * sum(split.layers[stage :: layout.pipeline])
        if model.kind == "lst":
            kept += local_activations(config, layout, units, work, e, first=first, last=last, fused=fused)
        logits = logit_bytes(config, work.tokens, e) / layout.tensor if last else 0.0
        states = state_bytes(config, layout, parameters[stage])
        stages.append(Memory(*states, activations=flying * kept + live, logits=logits))
    return stages


def logit_bytes(config: Config, tokens: float, e: float) -> float:
    """Logits and their softmax; in chunks, of one chunk at a time, and their gradients with them."""
    chunk = config.engine.loss_chunk
    if chunk == 0 or tokens <= chunk:
        return tokens * config.vocabulary.padded_size * (e + 4)
    return chunk * config.vocabulary.padded_size * (e + 8)


def global_shape(config: Config, fused: bool = True) -> LayerShape:
    model = config.model
    return LayerShape(model.hidden, model.global_ffn, model.global_kv_heads / model.heads, fused)


def local_activations(
    config: Config,
    layout: Layout,
    units: float,
    work: Work,
    e: float,
    *,
    first: bool,
    last: bool,
    fused: bool = True,
) -> float:
    """Bytes that encoder (on the first stage, its token part on the last too) and decoder (on the last) keep.

    Args:
        units: of one micro-batch, padding among them.
        work: of one micro-batch; the tokens of encoder and decoder, the patches and the text positions are read.
    """
    model = config.model
    d, k = model.local_hidden, model.queries
    shape = LayerShape(d, model.local_ffn_size, 1.0, fused)
    encoded, decoded = work.encoder_tokens, work.decoder_tokens
    replica = last and layout.pipeline > 1 and model.decoder_input == "encoder"
    total = 0.0
    if first or replica:
        total += model.encoder_layers * layer_activations(shape, encoded, e, layout)
    if first:
        # Token states, pooled states and the queries that they become, then the cross-attention.
        total += e * (encoded * d + work.patches * (1 + k) * d)
        total += cross_activations(d, work.patches * k, encoded, e, layout, fused)
    if last:
        # Global outputs, the keys of all layers, input and output of the last norm (of text's own norm as well).
        total += e * (units * (model.hidden + k * d) + 2 * decoded * d + 2 * work.text_positions * model.hidden)
        layer = layer_activations(shape, decoded, e, layout) + cross_activations(
            d, decoded, units * k, e, layout, fused
        )
        total += model.decoder_layers * layer
    return total
