"""Layouts of ranks: which are possible, and what to say of those that are not. No process group is needed here."""

from dataclasses import dataclass, replace

from megatron_lst.config.schema import Config, ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.machine import environment_number


@dataclass(frozen=True)
class ParallelLayout:
    """Sizes of the parallel dimensions; tensor * pipeline * data = world size.

    Attributes:
        virtual: model chunks of each pipeline stage.
        sequence: sequence parallelism inside the tensor-parallel group.
    """

    tensor: int
    pipeline: int
    virtual: int
    data: int
    sequence: bool

    def __str__(self) -> str:
        extra = (f", virtual={self.virtual}" if self.virtual > 1 else "") + (", sequence=true" if self.sequence else "")
        return f"tensor={self.tensor}, pipeline={self.pipeline}{extra} (data={self.data})"

    @property
    def short(self) -> str:
        """As people say it: TP2 SP PP4x2 DP8."""
        virtual = f"x{self.virtual}" if self.virtual > 1 else ""
        return f"TP{self.tensor}{' SP' if self.sequence else ''} PP{self.pipeline}{virtual} DP{self.data}"


def world_size() -> int:
    """Ranks of this run as the launcher says; 1 without one.

    Raises:
        UserError: WORLD_SIZE is set and no number.
    """
    return environment_number("WORLD_SIZE", 1, least=1)


def problems(config: Config, layout: ParallelLayout, world: int) -> list[str]:
    """Everything that makes a layout impossible, in words; empty when it works."""
    model, training, found = config.model, config.training, []
    tensor, stages = layout.tensor, layout.pipeline * layout.virtual
    if layout.tensor * layout.pipeline * layout.data != world:
        found.append(
            f"{world} ranks are not a multiple of parallel.tensor * parallel.pipeline = {tensor} * {layout.pipeline}"
        )
    for name, size in _sharded_sizes(config.model):
        if size % tensor:
            found.append(f"{name}={size} is not divisible by parallel.tensor={tensor}")
    kv_heads = model.global_kv_heads
    if kv_heads % tensor and tensor % kv_heads:
        found.append(f"model.kv_heads={kv_heads} and parallel.tensor={tensor}: one must divide the other")
    if config.vocabulary.padded_size % tensor:
        found.append(f"the vocabulary's {config.vocabulary.padded_size} rows are not divisible by {tensor}")
    if layout.sequence and tensor == 1:
        found.append("parallel.sequence=true needs parallel.tensor of at least 2")
    if layout.sequence and training.micro_batch * config.data.units % tensor:
        found.append(
            f"parallel.sequence=true: training.micro_batch * data.units = "
            f"{training.micro_batch * config.data.units} is not divisible by parallel.tensor={tensor}"
        )
    if stages > model.layers:
        found.append(f"{stages} pipeline stages for model.layers={model.layers} global layers")
    if layout.virtual > 1 and layout.pipeline == 1:
        found.append("parallel.virtual needs parallel.pipeline of at least 2")
    rows = training.global_batch
    if layout.data and rows % (layout.data * training.micro_batch):
        found.append(
            f"training.global_batch={rows} is not divisible by training.micro_batch * data-parallel ranks = "
            f"{training.micro_batch} * {layout.data}"
        )
    elif layout.virtual > 1 and (rows // layout.data // training.micro_batch) % layout.pipeline:
        found.append(
            f"parallel.virtual={layout.virtual} needs the {rows // layout.data // training.micro_batch} micro-batches "
            f"of a step to be a multiple of parallel.pipeline={layout.pipeline}"
        )
    split = config.parallel.split
    if split is not None and (len(split) != stages or sum(split) != model.layers or min(split) < 0):
        found.append(
            f"parallel.split={list(split)} must give {stages} stages that add up to model.layers={model.layers}"
        )
    if config.engine.name == "deepspeed" and layout.pipeline > 1:
        found.append("engine.name=deepspeed has no pipeline parallelism here; use engine.name=megatron, or ZeRO")
    return found + (_fp8_problems(config, layout) if config.engine.fp8 != "none" else [])


def _fp8_problems(config: Config, layout: ParallelLayout) -> list[str]:
    """Sides of the fp8 products that the kernels do not take: on each rank a multiple of 16, of 32 for mxfp8."""
    model, training, fp8 = config.model, config.training, config.engine
    multiple, kind = (16, fp8.fp8_recipe) if fp8.fp8_recipe in ("tensorwise", "blockwise") else (32, "mxfp8")
    projected = (model.heads + 2 * model.global_kv_heads) * model.global_head_size
    sides = (
        ("model.hidden", model.hidden, layout.tensor),
        ("model.ffn", model.global_ffn, layout.tensor),
        ("model.heads * model.head_size", model.heads * model.global_head_size, layout.tensor),
        ("the rows of the projection to queries, keys and values", projected, layout.tensor),
        (
            "training.micro_batch * data.units",
            training.micro_batch * config.data.units,
            layout.tensor if layout.sequence else 1,
        ),
    )
    advice = " (16 with engine.fp8_recipe=tensorwise or blockwise)" if fp8.fp8_recipe == "auto" else ""
    return [
        f"engine.fp8={fp8.fp8}: {name} = {size}"
        + (f" over {ranks} ranks" if ranks > 1 else "")
        + f" must give each rank a multiple of {multiple} for {kind}{advice}"
        for name, size, ranks in sides
        if size % (ranks * multiple)
    ]


def _sharded_sizes(model: ModelConfig) -> list[tuple[str, int]]:
    sizes = [("model.heads", model.heads), ("model.ffn", model.global_ffn)]
    if model.kind == "lst":
        sizes += [("model.local_heads", model.local_heads), ("model.local_ffn", model.local_ffn_size)]
    return sizes


def check_layout(config: Config, world: int) -> ParallelLayout:
    """The layout of a run on `world` ranks.

    Raises:
        UserError: it cannot work; says why, and names the nearest layouts that do.
    """
    parallel = config.parallel
    model_ranks = parallel.tensor * parallel.pipeline
    layout = ParallelLayout(
        parallel.tensor, parallel.pipeline, parallel.virtual, max(world // model_ranks, 0), parallel.sequence
    )
    found = problems(config, layout, world)
    if not found:
        return layout
    near = nearest_layouts(config, layout, world)
    advice = (
        "Layouts that work on " + (f"{world} ranks" if world > 1 else "1 rank") + ": " + "; ".join(map(str, near))
        if near
        else f"No layout of {world} ranks works with this model and batch"
    )
    if world == 1 and model_ranks > 1:
        advice += f"; to start more ranks: torchrun --nproc-per-node {model_ranks} -m megatron_lst train CONFIG"
    raise UserError(f"This layout cannot work: {'; '.join(found)}. {advice}.")


def nearest_layouts(config: Config, wanted: ParallelLayout, world: int, count: int = 3) -> list[ParallelLayout]:
    """Up to `count` layouts that work, those closest to the wanted sizes first."""
    free = replace(config, parallel=replace(config.parallel, split=None))
    works = []
    for tensor in _divisors(world):
        for pipeline in _divisors(world // tensor):
            virtual = wanted.virtual if pipeline > 1 else 1
            for candidate_virtual in {virtual, 1}:
                layout = ParallelLayout(
                    tensor,
                    pipeline,
                    candidate_virtual,
                    world // tensor // pipeline,
                    wanted.sequence and tensor > 1,
                )
                if not problems(free, layout, world):
                    works.append(layout)

    def distance(layout: ParallelLayout) -> tuple[int, int, int, int]:
        tensor, pipeline = max(wanted.tensor, 1), max(wanted.pipeline, 1)
        ratio = max(layout.tensor, tensor) * max(layout.pipeline, pipeline)
        ratio //= max(min(layout.tensor, tensor) * min(layout.pipeline, pipeline), 1)
        return ratio, abs(layout.tensor - tensor), abs(layout.pipeline - pipeline), abs(layout.virtual - wanted.virtual)

    return sorted(works, key=distance)[:count]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
