"""An estimate of a step's time from FLOPs, bubbles and bytes on the wires. Every assumption is a named field."""

from dataclasses import dataclass

from megatron_lst.config.schema import Config
from megatron_lst.flops import forward_flops, module_flops
from megatron_lst.flops.counter import TRAINING_FACTOR
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import PipelineSplit, stage_work
from megatron_lst.planning.devices import Device
from megatron_lst.planning.memory import stage_parameters
from megatron_lst.planning.traffic import boundary_bytes, element_bytes, tensor_traffic


@dataclass(frozen=True)
class Assumptions:
    """What is assumed and not known.

    Attributes:
        efficiency: share of the peak that the model's own computation reaches, before bubbles and communication.
        network: bytes/s in one direction between nodes, for each accelerator.
        per_node: accelerators of a node.
        hidden: share of the compute time behind which gradient reduction can hide.
    """

    efficiency: float = 0.5
    network: float = 50e9
    per_node: int = 8
    hidden: float = 0.6


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step, estimated.

    Attributes:
        compute: the heaviest stage's work, recomputation included.
        bubble: waiting of the pipeline, and what crosses its boundaries unless an interleaved schedule hides it.
        tensor: collectives of tensor parallelism on the busiest stage, as if none were overlapped.
        data: gradient reduction that does not hide behind compute.
        mfu: useful FLOPs over what the devices could do in that time.
    """

    compute: float
    bubble: float
    tensor: float
    data: float
    mfu: float

    @property
    def total(self) -> float:
        return self.compute + self.bubble + self.tensor + self.data


def step_time(
    config: Config, layout: ParallelLayout, split: PipelineSplit, device: Device, assumed: Assumptions | None = None
) -> StepTime:
    """Estimated time of one step of the global batch on `tensor * pipeline * data` devices."""
    assumed = assumed or Assumptions()
    training = config.training
    rows = training.global_batch / layout.data
    micro_batches = rows / training.micro_batch
    row = TRAINING_FACTOR * forward_flops(config)
    speed = device.peak * assumed.efficiency
    compute = rows * row * max(split.loads) / layout.tensor / speed
    compute += rows * _recomputed(config, layout, split) / layout.tensor / speed
    one_node = layout.tensor * layout.pipeline * layout.data <= assumed.per_node
    between = device.link if one_node and device.link else assumed.network
    tensor = 0.0
    if layout.tensor > 1:
        wire = device.link if layout.tensor <= assumed.per_node and device.link else assumed.network
        tensor = micro_batches * max(tensor_traffic(config, layout, split)) / wire
    bubble = (compute + tensor) * (layout.pipeline - 1) / (layout.virtual * micro_batches)
    if layout.pipeline > 1 and layout.virtual == 1:
        bubble += 2 * micro_batches * boundary_bytes(config, layout) / between
    data = 0.0
    if layout.data > 1:
        # Gradients in fp32 reduced and scattered, weights gathered; or gradients all-reduced.
        sharded = config.engine.name != "megatron" or config.engine.distributed_optimizer
        each = 4.0 + element_bytes(config) if sharded else 8.0
        moved = max(stage_parameters(config, layout, split)) * each * (layout.data - 1) / layout.data
        data = max(0.0, moved / between - assumed.hidden * compute)
    total = compute + bubble + tensor + data
    world = layout.tensor * layout.pipeline * layout.data
    return StepTime(compute, bubble, tensor, data, training.global_batch * row / (total * world * device.peak))


def _recomputed(config: Config, layout: ParallelLayout, split: PipelineSplit) -> float:
    """FLOPs that the heaviest stage computes a second time for one row."""
    if config.training.recompute == "none":
        return 0.0
    layer = stage_work(config)[2]
    if config.training.recompute == "selective":
        layer = module_flops(config)["global.mlp"] / config.model.layers
    return layer * max(sum(split.layers[stage :: layout.pipeline]) for stage in range(layout.pipeline))
