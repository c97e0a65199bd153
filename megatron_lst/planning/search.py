"""Layouts that fit a cluster, ranked by the estimated time of a step."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from megatron_lst.config.schema import Config, ParallelConfig, TrainingConfig
from megatron_lst.parallel.layout import ParallelLayout, problems
from megatron_lst.parallel.split import PipelineSplit, pipeline_split
from megatron_lst.planning.devices import Device
from megatron_lst.planning.memory import Memory, stage_memory
from megatron_lst.planning.speed import Assumptions, StepTime, step_time

USABLE = 0.92
"""Share of a device's memory that tensors can fill: the rest goes to fragmentation."""
MICRO_BATCHES = (1, 2, 4, 8, 16)
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Cluster:
    """What there is to run on."""

    device: Device
    gpus: int
    assumed: Assumptions = field(default_factory=Assumptions)


@dataclass(frozen=True)
class LayoutPlan:
    """One way to run a configuration.

    Attributes:
        config: with the layout's keys set.
        memory: of the fullest stage.
        time: of one step.
        fits: within the usable memory.
    """

    config: Config
    layout: ParallelLayout
    split: PipelineSplit
    memory: Memory
    time: StepTime
    fits: bool

    @property
    def overrides(self) -> list[str]:
        """`key=value` that turn the original configuration into this one."""
        parallel, training = self.config.parallel, self.config.training
        return [
            f"parallel.tensor={parallel.tensor}",
            f"parallel.sequence={str(parallel.sequence).lower()}",
            f"parallel.pipeline={parallel.pipeline}",
            f"parallel.virtual={parallel.virtual}",
            f"training.micro_batch={training.micro_batch}",
            f"training.recompute={training.recompute}",
        ]


def evaluate(config: Config, cluster: Cluster) -> LayoutPlan:
    """The configuration's own layout on a cluster; its world size has to be possible (`parallel.layout.problems`)."""
    parallel = config.parallel
    layout = ParallelLayout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual=parallel.virtual,
        data=cluster.gpus // (parallel.tensor * parallel.pipeline),
        sequence=parallel.sequence,
    )
    split = pipeline_split(config, layout.pipeline, layout.virtual)
    memory = max(stage_memory(config, layout, split), key=lambda m: m.total)
    time = step_time(config, layout, split, cluster.device, cluster.assumed)
    return LayoutPlan(config, layout, split, memory, time, memory.total <= USABLE * cluster.device.memory)


def candidates(config: Config, cluster: Cluster) -> Iterator[Config]:
    """Configurations that differ in layout, micro-batch and recomputation, and that can run on the cluster."""
    gpus = cluster.gpus
    pipelines = config.engine.name == "megatron"
    for tensor in (t for t in range(1, cluster.assumed.per_node + 1) if gpus % t == 0):
        for pipeline in (p for p in range(1, config.model.layers + 1) if gpus // tensor % p == 0):
            if pipeline > 1 and not pipelines:
                break
            for virtual in (1, 2) if pipeline > 1 else (1,):
                layout = ParallelLayout(tensor, pipeline, virtual, gpus // tensor // pipeline, tensor > 1)
                parallel = ParallelConfig(tensor, pipeline, virtual, tensor > 1)
                for micro_batch in MICRO_BATCHES:
                    for recompute in RECOMPUTE:
                        training: TrainingConfig = replace(
                            config.training,
                            micro_batch=micro_batch,
                            recompute=recompute,  # type: ignore[arg-type]
                        )
                        found = replace(config, parallel=parallel, training=training)
                        if not problems(found, layout, gpus):
                            yield found


def search(config: Config, cluster: Cluster) -> list[LayoutPlan]:
    """Every candidate: those that fit first, the quickest first; then the others, the smallest first."""
    plans = [evaluate(candidate, cluster) for candidate in candidates(config, cluster)]

    def order(plan: LayoutPlan) -> tuple[bool, float, float]:
        if plan.fits:
            return False, plan.time.total, plan.memory.total
        return True, plan.memory.total, plan.time.total

    return sorted(plans, key=order)
