"""An estimate of a step's time from FLOPs, bubbles and bytes on the wires. Every assumption is a named field."""

from dataclasses import dataclass

from megatron_lst.config.schema import Config
from megatron_lst.flops import forward_flops, module_flops
from megatron_lst.flops.counter import TRAINING_FACTOR
from megatron_lst.flops.work import Work, expected_work
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import PipelineSplit
from megatron_lst.planning.devices import Device
from megatron_lst.planning.memory import stage_parameters
from megatron_lst.planning.rates import FUSED, GAP, HOST, LAYER_OPERATORS, PRODUCTS, UPDATE_BYTES, Elementwise, Rates
from megatron_lst.planning.traffic import boundary_bytes, element_bytes, tensor_traffic


@dataclass(frozen=True)
class Assumptions:
    """What is assumed and not known.

    Attributes:
        efficiency: share of the peak that large matrix products reach (`planning/rates.py`).
        network: bytes/s in one direction between nodes, for each accelerator.
        per_node: accelerators of a node.
        hidden: share of the compute time behind which data parallelism's collectives can hide.
        contention: share of a hidden collective's time by which it slows the computation that hides it.
        elementwise: what is moved beside the products.
    """

    efficiency: float = PRODUCTS
    network: float = 50e9
    per_node: int = 8
    hidden: float = 0.6
    contention: float = 0.4
    elementwise: Elementwise = FUSED


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step, estimated.

    Attributes:
        compute: the heaviest stage's work, recomputation included.
        bubble: waiting of the pipeline, and what crosses its boundaries unless an interleaved schedule hides it.
        tensor: collectives of tensor parallelism on the busiest stage, as if none were overlapped.
        data: gradient reduction and gathering of weights: what does not hide behind compute, and what hiding costs.
        update: the optimizer.
        mfu: useful FLOPs over what the devices could do in that time.
    """

    compute: float
    bubble: float
    tensor: float
    data: float
    update: float
    mfu: float

    @property
    def total(self) -> float:
        return self.compute + self.bubble + self.tensor + self.data + self.update


def step_time(
    config: Config, layout: ParallelLayout, split: PipelineSplit, device: Device, assumed: Assumptions | None = None
) -> StepTime:
    """Estimated time of one step of the global batch on `tensor * pipeline * data` devices."""
    assumed = assumed or Assumptions()
    rates = Rates(device, assumed.efficiency, assumed.elementwise)
    training = config.training
    micro_batches = training.global_batch / layout.data / training.micro_batch
    compute = micro_batches * max(stage_seconds(config, layout, split, rates))
    tensor = 0.0
    if layout.tensor > 1:
        wire = rates.wire(layout.tensor, assumed.per_node, assumed.network)
        tensor = micro_batches * max(tensor_traffic(config, layout, split)) / wire
    bubble = (compute + tensor) * (layout.pipeline - 1) / (layout.virtual * micro_batches)
    if layout.pipeline > 1 and layout.virtual == 1:
        wire = rates.wire(layout.pipeline, assumed.per_node, assumed.network, layout.tensor * layout.data)
        bubble += 2 * micro_batches * boundary_bytes(config, layout) / wire
    parameters = max(stage_parameters(config, layout, split))
    data = _data_seconds(config, layout, parameters, micro_batches, compute, rates, assumed)
    sharded = layout.data if _optimizer_is_sharded(config) else 1
    update = rates.move(UPDATE_BYTES * parameters / sharded)
    total = compute + bubble + tensor + data + update
    world = layout.tensor * layout.pipeline * layout.data
    useful = training.global_batch * TRAINING_FACTOR * forward_flops(config)
    return StepTime(compute, bubble, tensor, data, update, useful / (total * world * device.peak))


def stage_seconds(config: Config, layout: ParallelLayout, split: PipelineSplit, rates: Rates) -> list[float]:
    """Seconds that each stage computes for one micro-batch, forward, backward and what is recomputed."""
    training, model = config.training, config.model
    work = expected_work(config) * training.micro_batch
    layer = _layer_seconds(config, layout, work, rates)
    first, last = _end_seconds(config, layout, work, rates)
    stages = []
    for stage in range(layout.pipeline):
        seconds = sum(split.layers[stage :: layout.pipeline]) * layer
        seconds += first if stage == 0 else 0.0
        seconds += last if stage == layout.pipeline - 1 else 0.0
        if stage == layout.pipeline - 1 > 0 and model.kind == "lst" and model.decoder_input == "encoder":
            seconds += first  # its replica of the encoder
        operators = _operators(config, layout, split, stage)
        stages.append(max(seconds + GAP * operators, HOST * operators))
    return stages


def _operators(config: Config, layout: ParallelLayout, split: PipelineSplit, stage: int) -> int:
    """Kernels that a stage launches for one micro-batch, about."""
    model, layers = config.model, sum(split.layers[stage :: layout.pipeline])
    if model.kind == "lst" and stage == 0:
        layers += 2 * model.encoder_layers
    if model.kind == "lst" and stage == layout.pipeline - 1:
        layers += 2 * model.decoder_layers
    return LAYER_OPERATORS * layers


def _layer_seconds(config: Config, layout: ParallelLayout, work: Work, rates: Rates) -> float:
    """One global layer, both ways."""
    model, tensor = config.model, layout.tensor
    positions = config.training.micro_batch * config.data.units
    flops = module_flops(config, work)
    scores = 4 * work.global_pairs * model.heads * model.global_head_size
    projections = flops["global.attention"] / model.layers - scores
    mlp = flops["global.mlp"] / model.layers
    # Padded positions are computed too.
    padded = positions / max(work.units, 1.0)
    narrow = model.hidden / tensor**0.5  # half of the products have their inner dimension sharded
    forward = {
        "projections": rates.product(padded * projections / tensor, narrow),
        "attention": rates.attention(scores / tensor, backward=False),
        "mlp": rates.product(padded * mlp / tensor, narrow),
    }
    e = element_bytes(config)

    def moved(way: tuple[float, float]) -> float:
        d = way[0] * model.hidden / (tensor if layout.sequence else 1)
        return rates.move(e * positions * (d + way[1] * model.global_ffn / tensor))

    backward = 2 * (forward["projections"] + forward["mlp"]) + rates.attention(scores / tensor, backward=True)
    seconds = sum(forward.values()) + backward + moved(rates.elementwise.forward) + moved(rates.elementwise.backward)
    if config.training.recompute == "full":
        seconds += sum(forward.values()) + moved(rates.elementwise.forward)
    elif config.training.recompute == "selective":  # SwiGLU between its products, and attention with its rotary
        seconds += forward["attention"] + moved(rates.elementwise.forward)
    return seconds


def _end_seconds(config: Config, layout: ParallelLayout, work: Work, rates: Rates) -> tuple[float, float]:
    """What the first and the last stage have beside global layers, both ways."""
    model, e = config.model, element_bytes(config)
    flops = module_flops(config, work)
    lst = model.kind == "lst"
    positions = work.tokens if lst else config.training.micro_batch * config.data.units
    d, f, layers = model.local_hidden, model.local_ffn_size, (model.encoder_layers, model.decoder_layers)
    moves = (rates.elementwise.forward, rates.elementwise.backward)

    def both_ways(prefix: str, pairs: float, count: int) -> float:
        """Products and elementwise work of the local modules that begin with `prefix`."""
        scores = 4 * pairs * d
        total = sum(value for name, value in flops.items() if name.startswith(prefix))
        seconds = TRAINING_FACTOR * rates.product(max(total - scores, 0.0) / layout.tensor, d)
        seconds += rates.attention(scores / layout.tensor, backward=False)
        seconds += rates.attention(scores / layout.tensor, backward=True)
        # A cross-attention beside a layer moves about half as much again.
        widths = sum(way[0] * d * 1.5 + way[1] * f for way in moves)
        return seconds + rates.move(e * positions * count * widths / layout.tensor)

    first = last = 0.0
    if lst:
        first = both_ways("encoder.", layers[0] * work.encoder_pairs + model.queries * work.patch_pairs, layers[0])
        last = both_ways("decoder.", layers[1] * (work.decoder_pairs + model.queries * work.cross_pairs), layers[1])
    for name, width in (("head", d if lst else model.hidden), ("text_head", model.hidden)):
        if name in flops:
            logits = flops[name] / (2 * width)
            again = 1.0 if 0 < config.engine.loss_chunk < positions else 0.0  # each chunk's logits once more
            last += (TRAINING_FACTOR + again) * rates.product(flops[name] / layout.tensor, width)
            last += rates.move(logits * rates.elementwise.logit / layout.tensor)
    first += rates.move(6 * e * positions * (d if lst else model.hidden))  # the embedding and its gradient
    return first, last


def _optimizer_is_sharded(config: Config) -> bool:
    engine = config.engine
    return engine.distributed_optimizer if engine.name == "megatron" else engine.zero_stage >= 1


def _data_seconds(
    config: Config,
    layout: ParallelLayout,
    parameters: float,
    micro_batches: float,
    compute: float,
    rates: Rates,
    assumed: Assumptions,
) -> float:
    """What data parallelism's collectives add to a step; `parameters`: of the fullest rank."""
    if layout.data == 1:
        return 0.0
    wire = rates.wire(layout.data, assumed.per_node, assumed.network, layout.tensor)
    share = parameters * (layout.data - 1) / layout.data / wire
    e = element_bytes(config)
    if config.engine.name == "deepspeed" and config.engine.zero_stage >= 3:
        # Weights gathered forward and backward and gradients scattered, in each micro-batch.
        moved = micro_batches * share * (2 * e + 4.0)
    else:  # gradients in fp32 reduced and scattered, weights gathered; or gradients all-reduced
        moved = share * (4.0 + e if _optimizer_is_sharded(config) else 8.0)
    hidden = min(moved, assumed.hidden * compute)
    return moved - hidden + assumed.contention * hidden
