"""Bytes on one accelerator, stage by stage: weights, gradients, optimizer, activations, logits.

Legend: d width, f SwiGLU width, t tensor-parallel ranks, e bytes of an element, n positions (tokens or units).
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from megatron_lst.config.schema import Config
from megatron_lst.flops import module_parameters
from megatron_lst.flops.work import Work, expected_work
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import PipelineSplit

RUNTIME = 3e9
"""CUDA context, NCCL buffers, workspaces."""
TOKEN_SPREAD = 1.1
"""Micro-batches have more tokens than the average; balancing keeps them near it."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank of one pipeline stage. The first three are exact, the others estimated.

    Attributes:
        weights, gradients, optimizer: as the engine keeps them (bf16: 2 + 4 + 12 bytes a parameter, the last sharded).
        activations: kept as a backward pass begins, over all micro-batches in flight, and the buffers beside them.
        logits: of one micro-batch, with what the loss keeps.
        backward: what a backward pass adds in the global layers: what it computes again and gradients under way, less
            what the decoder has given back by then.
        saving: beside the state while a checkpoint is saved or loaded: the largest tensor, whole, and as much
            again that is sent.
        host: what one writing rank copies to its host's memory for a checkpoint, which is the file it writes.
        runtime: everything that is not a tensor of ours.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    backward: float
    saving: float = 0.0
    host: float = 0.0
    runtime: float = RUNTIME

    @property
    def total(self) -> float:
        states = self.weights + self.gradients + self.optimizer
        step = self.activations + max(self.logits, self.backward)
        return states + max(step, self.saving) + self.runtime


def stage_parameters(config: Config, layout: ParallelLayout, split: PipelineSplit) -> list[float]:
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


def state_bytes(config: Config, layout: ParallelLayout, parameters: float) -> tuple[float, float, float]:
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


def checkpoint_bytes(config: Config, layout: ParallelLayout, parameters: float) -> tuple[float, float]:
    """(beside the state on a device, on the host of a rank that writes) while `parameters` of one rank are saved."""
    model = config.model
    local = model.local_hidden if model.kind == "lst" else model.hidden
    largest = max(config.vocabulary.padded_size * local, 2 * model.global_ffn * model.hidden) / layout.tensor
    whole = parameters * (12.0 + (2.0 if config.training.precision == "bf16" else 4.0))
    writers = min(layout.data, max(1, round(whole / (config.checkpoint.file_megabytes * 1e6))))
    return 2 * 4.0 * largest, whole / writers


@dataclass(frozen=True)
class LayerShape:
    """What one pre-norm layer's kept tensors follow from.

    Attributes:
        d, f: width, and width of the SwiGLU.
        heads, kv_heads: attention heads, and those of keys and values.
        head_size: their width.
        fused: norm and activation are one kernel each, as on a GPU; elsewhere they keep their steps.
    """

    d: int
    f: int
    heads: int
    kv_heads: int
    head_size: int
    fused: bool = True


def layer_activations(shape: LayerShape, n: float, e: float, layout: ParallelLayout, recompute: str = "none") -> float:
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
    kv_ratio = shape.kv_heads / shape.heads
    # The output, and the projection's whole output, which the values are a view of; turned queries and keys, unless
    # they are computed again.
    turned = 1 + kv_ratio if recompute != "selective" else 0.0
    attention = (2 + 2 * kv_ratio + turned) * shape.heads * shape.head_size / t
    # Both halves of the projection and their product; and the step between, where it is not one kernel.
    mlp = 0.0 if recompute == "selective" else (3 if shape.fused else 4) * shape.f / t
    return n * e * (norms + attention + mlp)


def cross_activations(
    d: int, queries: float, keys: float, e: float, layout: ParallelLayout, *, sharded: bool, fused: bool = True
) -> float:
    """Bytes that one cross-attention keeps: inputs and normed outputs of both sides, q, k, v, output.

    The keys' input is shared by all layers and is counted by the caller.

    Args:
        sharded: sequence parallelism shards the queries' positions (in the decoder; patches are on every rank).
    """
    whole = d / (layout.tensor if layout.sequence and sharded else 1)
    steps = 0 if fused else 1
    return e * (
        queries * ((2 + steps) * whole + 2 * d / layout.tensor) + keys * ((1 + steps) * d + 2 * d / layout.tensor)
    )


def passes(pipeline: int, virtual: int, stage: int, micro_batches: int) -> list[tuple[int, int]]:
    """What a stage does in a step: (1 forward or -1 backward, which of its model chunks), in order.

    Megatron-core's 1F1B, interleaved where `virtual` is above 1: chunks take turns after `pipeline` micro-batches.
    """
    total = micro_batches * virtual
    ahead = (pipeline - stage - 1) * 2 + (virtual - 1) * pipeline if virtual > 1 else pipeline - stage - 1
    ahead = min(ahead, total)
    forward = [(1, n % (pipeline * virtual) // pipeline) for n in range(total)]
    backward = [(-1, virtual - 1 - chunk) for _, chunk in forward]
    alternating = [done for pair in zip(forward[ahead:], backward, strict=False) for done in pair]
    return forward[:ahead] + alternating + backward[total - ahead :]


@cache
def in_flight(pipeline: int, virtual: int, stage: int, micro_batches: int) -> frozenset[tuple[int, ...]]:
    """Micro-batches whose activations each chunk of a stage keeps, at the moments when the most is kept."""
    counts, found = [0] * virtual, set()
    # After four rounds everything repeats; the most is kept when a backward pass follows a forward pass.
    done = passes(pipeline, virtual, stage, min(micro_batches, 4 * pipeline))
    for (change, chunk), (following, _) in pairwise(done):
        counts[chunk] += change
        if change > following:
            found.add(tuple(counts))
    below = {a for a in found for b in found if a != b and all(x <= y for x, y in zip(a, b, strict=True))}
    return frozenset(found - below)


def stage_memory(
    config: Config, layout: ParallelLayout, split: PipelineSplit, fused: bool = True, work: Work | None = None
) -> list[Memory]:
    """Memory of one rank of each pipeline stage. Activations are those of bf16: in fp8 a little less is kept.

    Args:
        work: of a micro-batch, where it is known; otherwise what is expected, with room for one above the average.
    """
    model, training = config.model, config.training
    e = 2.0 if training.precision == "bf16" else 4.0
    units = training.micro_batch * config.data.units
    if work is None:
        work = expected_work(config) * (training.micro_batch * (TOKEN_SPREAD if model.kind == "lst" else 1.0))
    micro_batches = training.global_batch // (training.micro_batch * layout.data)
    parameters = stage_parameters(config, layout, split)
    shape = global_shape(config, fused)
    layer = layer_activations(shape, units, e, layout, training.recompute)
    again = layer_activations(shape, units, e, layout) - layer if training.recompute != "none" else 0.0
    # The widest weight's gradient before it is added up in fp32, and its input's before it is reduced over the ranks.
    backward = again + e * (2 * shape.d * shape.f / layout.tensor + units * shape.d)
    received = 0.0
    if layout.pipeline > 1:  # the gradient that the next stage sent
        received = e * units * shape.d / (layout.tensor if layout.sequence else 1)
    stages = []
    for stage in range(layout.pipeline):
        first, last = stage == 0, stage == layout.pipeline - 1
        kept = [layer * layers for layers in split.layers[stage :: layout.pipeline]]
        if first:
            kept[0] += encoder_activations(config, layout, work, e, fused)
        decoder = decoder_activations(config, layout, units, work, e, fused) if last else 0.0
        kept[-1] += decoder
        gathered = 0.0
        if layout.sequence:  # one buffer, in which every product's input is brought together
            local = work.tokens * model.local_hidden if model.kind == "lst" and (first or last) else 0.0
            gathered = e * max(units * model.hidden, local)
        most = max(
            sum(count * size for count, size in zip(counts, kept, strict=True))
            for counts in in_flight(layout.pipeline, layout.virtual, stage, micro_batches)
        )
        logits = logit_bytes(config, work, e) / layout.tensor if last else 0.0
        weights, gradients, optimizer = state_bytes(config, layout, parameters[stage])
        if config.engine.fp8 != "none":  # the global matrices once more by rows and once by columns, a byte a number
            layers = sum(split.layers[stage :: layout.pipeline])
            weights += 2.0 * layers * module_parameters(config)["global"] / model.layers / layout.tensor
        if config.engine.name == "deepspeed" and config.engine.zero_stage >= 3:
            received += _gathered_weights(config, layout, e)
        most += received + gathered
        saving, host = checkpoint_bytes(config, layout, parameters[stage])
        stages.append(Memory(weights, gradients, optimizer, most, logits, max(backward - decoder, 0.0), saving, host))
    return stages


def _gathered_weights(config: Config, layout: ParallelLayout, e: float) -> float:
    """ZeRO-3: weights of a layer and of the next one, and the widest other module with its gradient, all whole."""
    counts = module_parameters(config)
    others = [count for name, count in counts.items() if name in ("embedding", "head", "text_embedding", "text_head")]
    return e * (2 * counts["global"] / config.model.layers + 2 * max(others)) / layout.tensor


def logits_are_chunked(config: Config, tokens: float) -> bool:
    return 0 < config.engine.loss_chunk < tokens


def logit_bytes(config: Config, work: Work, e: float) -> float:
    """Logits and their softmax, of both heads; in chunks, of one chunk at a time, beside its copy in fp32."""
    direct = config.model.kind == "lst" and config.model.text_path == "direct"
    heads = (work.decoder_tokens, work.text_positions) if direct else (work.tokens,)
    chunked = [config.engine.loss_chunk for tokens in heads if logits_are_chunked(config, tokens)]
    whole = sum(tokens for tokens in heads if not logits_are_chunked(config, tokens))
    return config.vocabulary.padded_size * (max(chunked, default=0) * (e + 4) + whole * (e + 4))


def global_shape(config: Config, fused: bool = True) -> LayerShape:
    model = config.model
    heads = (model.heads, model.global_kv_heads, model.global_head_size)
    return LayerShape(model.hidden, model.global_ffn, *heads, fused)


def local_shape(config: Config, fused: bool = True) -> LayerShape:
    model = config.model
    heads = (model.local_heads, model.local_heads, model.local_hidden // model.local_heads)
    return LayerShape(model.local_hidden, model.local_ffn_size, *heads, fused)


def encoder_activations(config: Config, layout: ParallelLayout, work: Work, e: float, fused: bool = True) -> float:
    """Bytes that the patch encoder keeps on the first stage, of one micro-batch; 0 for a baseline."""
    model = config.model
    if model.kind != "lst":
        return 0.0
    d, k, tokens = model.local_hidden, model.queries, work.encoder_tokens
    total = model.encoder_layers * layer_activations(local_shape(config, fused), tokens, e, layout)
    # Token states, pooled states and where each came from, then the cross-attention.
    total += e * (tokens * d + 2 * work.patches * d)
    return total + cross_activations(d, work.patches * k, tokens, e, layout, sharded=False, fused=fused)


def decoder_activations(
    config: Config, layout: ParallelLayout, units: float, work: Work, e: float, fused: bool = True
) -> float:
    """Bytes that patch decoder, last norm and head keep on the last stage, of one micro-batch.

    Args:
        units: of the micro-batch, padding among them.
        work: of the micro-batch; tokens of the encoder's replica and of the decoder, and text positions are read.
    """
    model = config.model
    lst = model.kind == "lst"
    d, tokens = (model.local_hidden, work.decoder_tokens) if lst else (model.hidden, units)
    # Input and output of the last norm; chunks of logits need the output whole.
    shard = layout.tensor if layout.sequence else 1
    total = e * tokens * d * (1 / shard + (1.0 if logits_are_chunked(config, tokens) else 1 / shard))
    if not lst:
        return total
    shape, k = local_shape(config, fused), model.queries
    if layout.pipeline > 1 and model.decoder_input == "encoder":
        total += model.encoder_layers * layer_activations(shape, work.encoder_tokens, e, layout)
    # Global outputs, the keys of all layers, input and output of text's own norm.
    total += e * (units * (model.hidden + k * d) + 2 * work.text_positions * model.hidden)
    cross = cross_activations(d, tokens, units * k, e, layout, sharded=True, fused=fused)
    return total + model.decoder_layers * (layer_activations(shape, tokens, e, layout) + cross)
