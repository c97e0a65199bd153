"""What `lst plan` says of each pipeline stage beside a trace of the real engine, at full size, without a GPU.

    python -m benchmarks.stages configs/lst-70b.yaml --gpus 512 [--set key=value ...]

Planned and traced bytes of one rank of each stage: what it holds between steps, what lives as a backward pass begins,
the most that lives at once, and what tensor parallelism sends in a micro-batch.  Both are arithmetic on shapes, neither
was measured on a GPU: fragmentation, NCCL's buffers and the CUDA context are in neither.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.rows import synthetic_rows
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.flops.work import Work, row_work
from megatron_lst.parallel.layout import check_layout
from megatron_lst.planning.memory import Memory, stage_memory
from megatron_lst.planning.traffic import tensor_traffic
from megatron_lst.simulation.rank import stage_rank, state_bytes, traced_rank
from megatron_lst.simulation.trace import Trace, trace_schedule

DOCUMENT = 1500
"""Raw tokens of every document."""


@dataclass(frozen=True)
class TracedStage:
    """One rank of a stage, planned and traced.

    Attributes:
        work: of the rows that were traced, a micro-batch.
        planned: for them.
        planned_sent: bytes sent to the tensor-parallel group in a micro-batch.
        states: traced bytes of "weights", "gradients" and "optimizer".
        micro_batches: how many were traced.
        widths: sizes of the weights' axes.
    """

    work: Work
    planned: Memory
    planned_sent: float
    states: dict[str, int]
    trace: Trace
    micro_batches: int
    widths: frozenset[int]

    @property
    def planned_peak(self) -> float:
        return self.planned.activations + max(self.planned.logits, self.planned.backward)

    @property
    def sent(self) -> float:
        """Traced bytes sent to the tensor-parallel group in a micro-batch."""
        sent = sum(c.wire for c in self.trace.collectives if c.group == "tensor" and c.phase)
        return sent / self.micro_batches


def trace_stage(config: Config, world: int, stage: int, micro_batches: int | None = None) -> TracedStage:
    """Plan and trace the first rank of a stage.

    Every micro-batch has the same rows: what is in flight is then a multiple of one of them.

    Args:
        micro_batches: of a step; by default enough for the schedule to repeat itself.
    """
    layout = check_layout(config, world)
    if micro_batches is None:
        micro_batches = 1 if layout.pipeline == 1 else layout.pipeline + 1
        if layout.virtual > 1:
            micro_batches = 2 * layout.pipeline
    rows = list(islice(synthetic_rows(config, DOCUMENT), config.training.micro_batch))
    work = sum((row_work(config, row) for row in rows), Work())
    with traced_rank(config, world, stage_rank(layout, stage)) as engine:
        trace = trace_schedule(engine, rows * micro_batches)
        states, split = state_bytes(engine), engine.split
        widths = frozenset(size for chunk in engine.chunks for p in chunk.parameters() for size in p.shape)
    planned = stage_memory(config, layout, split, work=work)[stage]
    sent = tensor_traffic(config, layout, split, work)[stage]
    return TracedStage(work, planned, sent, states, trace, micro_batches, widths)


def report(config: Config, world: int) -> str:
    """Markdown: planned / traced in GB, stage by stage."""
    layout = check_layout(config, world)
    lines = [
        f"{layout.short}, micro-batch {config.training.micro_batch}, recompute {config.training.recompute}: "
        "GB planned / traced",
        "",
        "| stage | weights, gradients, optimizer | kept | most at once | sent, a micro-batch |",
        "|---:|---:|---:|---:|---:|",
    ]
    for stage in range(layout.pipeline):
        found = trace_stage(config, world, stage)
        planned = found.planned
        pairs = (
            (planned.weights + planned.gradients + planned.optimizer, sum(found.states.values())),
            (planned.activations, found.trace.kept),
            (found.planned_peak, found.trace.peak),
            (found.planned_sent, found.sent),
        )
        cells = " | ".join(f"{plan / 1e9:.2f} / {traced / 1e9:.2f}" for plan, traced in pairs)
        lines.append(f"| {stage} | {cells} |")
    return "\n".join([*lines, "", "Traced on shapes without values, not measured on a GPU."])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--gpus", type=int, default=0, help="by default those of one data-parallel rank")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for lst train")
    options: Any = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.set)
        world = options.gpus or config.parallel.tensor * config.parallel.pipeline
        print(report(config, world))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
