"""The least time that a step can take on a device, and the time that is expected: every operator's FLOPs and bytes.

    python -m benchmarks.roofline configs/lst-1b.yaml [--device h200] [--micro-batch 4] [--document-tokens 1500]
    python -m benchmarks.roofline configs/lst-70b.yaml --stage 3     one rank of that stage, in the configured layout

Estimates, not measurements: nothing runs but a trace (`simulation.trace`).  "Least" is a bound: each tensor moved
once, at the full rates of the data sheet.  "Expected" takes operators as they are executed, rates that kernels reach,
tiles of attention and launches (`benchmarks.expected`).  They say where the time would go before a GPU is at hand,
which operators are worth fusing, and which goal no tuning can reach.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import torch

from benchmarks.expected import (
    ELEMENTWISE,
    GAP,
    IDLE,
    IDLE_AHEAD,
    NORM,
    PRODUCTS,
    TORCH_ADAMW,
    Executed,
    attention_seconds,
    attention_shape,
    executed,
    turned_bytes,
)
from benchmarks.rows import synthetic_rows
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.flops.work import Work, row_work
from megatron_lst.model.batch import to_device
from megatron_lst.parallel.layout import check_layout
from megatron_lst.planning.devices import Device, find_device
from megatron_lst.simulation.rank import stage_rank, traced_rank
from megatron_lst.simulation.trace import Operation, trace_schedule, trace_update

KINDS = {
    "matrix products": ("aten.mm", "aten.bmm", "aten.addmm", "lst_kernels.add_product", "lst_kernels.put_product"),
    "attention": ("lst_kernels.interval_attention", "lst_kernels.packed_attention", "lst_kernels.patch_attention"),
    "rotary": ("lst_kernels.rotary",),
    "pooling": ("lst_kernels.patch_pool", "lst_kernels.patch_unpool"),
    "norms": ("lst_kernels.rms_norm",),
    "SwiGLU": ("lst_kernels.swiglu",),
}
UPDATE = "gradients and AdamW"
ADAM_BYTES = 30
"""Least bytes a parameter in bf16 that AdamW with masters moves, where it is PyTorch's and not traced."""


@dataclass
class Share:
    """One kind of operation.

    Attributes:
        calls: operators; launches: kernels.
        bytes: each tensor once; executed: as they are moved.
        seconds: the least; expected: see `benchmarks.expected`, gaps between kernels left out.
        idle: expected seconds in which the device waits for the host.
    """

    calls: int = 0
    launches: float = 0.0
    bytes: float = 0.0
    executed: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    expected: float = 0.0
    idle: float = 0.0

    def add(self, moved: float, flops: float, device: Device, like: Executed, attention: float = 0.0) -> None:
        """attention: expected seconds where tiles decide."""
        self.calls += like.launches > 0  # what only allocates is no operator
        self.launches += like.launches
        self.bytes += moved
        self.executed += moved * like.passes
        self.flops += flops
        least = moved * min(1.0, like.passes)  # what only allocates, or touches few values, need not move all of it
        self.seconds += max(least / device.bandwidth, flops / device.peak)
        passing = moved * like.passes / (device.bandwidth * ELEMENTWISE)
        self.expected += max(passing, attention or flops / (device.peak * PRODUCTS))


def attention_flops(op: Operation, work: Work, units: int, queries: int) -> float:
    """Visible pairs alone: two products a pair forward, five backward, which computes the scores again."""
    counted, keys, heads, size = attention_shape(op)
    if "patch_attention" in op.name:
        pairs = work.patch_pairs * queries
    elif counted == keys == units:
        pairs = work.global_pairs
    elif keys == units * queries:
        pairs = work.cross_pairs * queries
    else:
        pairs = work.decoder_pairs if abs(counted - work.decoder_tokens) < 512 else work.encoder_pairs
    return (10 if "backward" in op.name else 4) * pairs * heads * size


def kind_of(op: Operation, config: Config, weights: set[tuple[int, ...]]) -> str:
    """The row of the table that an operator belongs to; `weights`: shapes of the rank's weights."""
    for kind, names in KINDS.items():
        if op.name.startswith(names):
            return kind
    if not op.phase or (op.name.startswith("aten.add_") and op.outputs[0] in weights):
        return UPDATE  # zeroed before the passes, added up in fp32 in them, scaled after them
    vocabulary = config.vocabulary.padded_size // config.parallel.tensor
    return "loss" if any(shape[-1:] == (vocabulary,) for shape in op.shapes) else "other elementwise"


def shares(config: Config, device: Device, document_tokens: int, stage: int = 0) -> tuple[dict[str, Share], Share]:
    """A step of one micro-batch on one rank of a pipeline stage that is not interleaved; data parallelism is left out.

    Returns:
        By kind of operation; and what the rank sends to its tensor-parallel group, at the rate of the device's links.
    """
    rows = list(islice(synthetic_rows(config, document_tokens), config.training.micro_batch))
    work = sum((row_work(config, row) for row in rows), Work())
    world = config.parallel.tensor * config.parallel.pipeline
    layout = check_layout(config, world)
    if not 0 <= stage < layout.pipeline:
        raise UserError(f"--stage {stage}: {config.parallel.pipeline} stages are counted from 0")
    with traced_rank(config, world, stage_rank(layout, stage)) as engine:
        trace = trace_schedule(engine, rows)
        traced = engine.optimizer.name == "lst_kernels"
        update = trace_update(engine) if traced else []
        batch = to_device(engine.pack(rows).batches[0], torch.device("cpu"))
        weights = {tuple(p.shape) for chunk in engine.chunks for p in chunk.parameters()}
        parameters = sum(p.numel() for chunk in engine.chunks for p in chunk.parameters())
    units = config.training.micro_batch * config.data.units
    found = {kind: Share() for kind in (*KINDS, "loss", "other elementwise", UPDATE)}
    for op in (*trace.operations, *update):
        kind = kind_of(op, config, weights)
        flops = attention_flops(op, work, units, config.model.queries) if kind == "attention" else op.flops
        tiled = attention_seconds(op, batch, device) if op.name.startswith(KINDS["attention"][:2]) else 0.0
        found[kind].add(op.bytes, flops, device, executed(op.name), tiled)
        if turned := turned_bytes(op):  # a kernel of its own inside the operator
            found["rotary"].add(turned, 0.0, device, Executed())
            found["rotary"].calls -= 1
    for part, least in ((NORM, NORM.bytes), *([] if traced else [(TORCH_ADAMW, ADAM_BYTES)])):
        found[UPDATE].add(least * parameters, 0.0, device, Executed(part.bytes / least, part.launches))
    found[UPDATE].idle = IDLE_AHEAD if traced else IDLE
    sent = [c.wire for c in trace.collectives if c.group == "tensor"]
    wires = sum(sent) / device.link if device.link else 0.0
    return found, Share(calls=len(sent), bytes=sum(sent), seconds=wires)


def _total(found: dict[str, Share]) -> tuple[Share, float]:
    """All kinds together, and the expected seconds between kernels and for the host, which are not in it."""
    whole = Share(**{f.name: sum(getattr(s, f.name) for s in found.values()) for f in fields(Share)})
    return whole, whole.launches * GAP + whole.idle


def summary(config: Config, found: dict[str, Share]) -> dict[str, Any]:
    """Least and expected seconds of the step and, where one GPU holds the model, the expected rate."""
    whole, waiting = _total(found)
    expected = whole.expected + waiting
    alone = config.parallel.tensor * config.parallel.pipeline == 1
    units = config.training.micro_batch * config.data.units
    return {
        "least_seconds": whole.seconds,
        "seconds": expected,
        "units_per_second": units / expected if alone else None,
        "by_kind": {kind: share.expected for kind, share in found.items()},
        "between_kernels": waiting,
    }


def report(config: Config, device: Device, found: dict[str, Share], sent: Share) -> str:
    """Markdown."""
    units = config.training.micro_batch * config.data.units
    whole, waiting = _total(found)
    lines = [
        "| | operators | kernels | GB | as executed | TFLOP | least ms | expected ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_line(kind, share) for kind, share in found.items()),
        f"| between kernels, and waiting for the host | | | | | | | {waiting * 1e3:.1f} |",
        _line("all", replace(whole, expected=whole.expected + waiting)),
    ]
    if sent.calls:
        lines.append(
            f"| beside it, on the wires | {sent.calls} | | {sent.bytes / 1e9:.1f} | | | {sent.seconds * 1e3:.1f} | |"
        )
    least, expected = whole.seconds, whole.expected + waiting
    alone = config.parallel.tensor * config.parallel.pipeline == 1
    for name, seconds in (("Least", least), ("Expected", expected)):
        rate = f", {units / seconds:,.0f} units/s" if alone else ""
        lines += ["", f"{name} time of a step of {units} units on {device.name}: {seconds * 1e3:.0f} ms{rate}."]
    return "\n".join([*lines, "", "Estimates from a data sheet and published rates, not measurements."])


def _line(kind: str, s: Share) -> str:
    amounts = f"{s.bytes / 1e9:.1f} | {s.executed / 1e9:.1f} | {s.flops / 1e12:.2f}"
    return f"| {kind} | {s.calls} | {s.launches:.0f} | {amounts} | {s.seconds * 1e3:.1f} | {s.expected * 1e3:.1f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--device", default="h200")
    parser.add_argument("--micro-batch", type=int, help="rows; by default 4, with --stage as configured")
    parser.add_argument("--document-tokens", type=int, default=1500)
    parser.add_argument("--stage", type=int, help="a pipeline stage of the configured layout; by default one GPU alone")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for lst train")
    parser.add_argument("--json", action="store_true", help="for programs: one line on standard output")
    options: Any = parser.parse_args(arguments)
    try:
        device = find_device(options.device)
        if device is None:
            raise UserError(f"--device {options.device!r} is not known; see megatron_lst/planning/devices.py")
        alone = ["parallel.tensor=1", "parallel.pipeline=1", "parallel.sequence=false", "training.micro_batch=4"]
        given = [] if options.micro_batch is None else [f"training.micro_batch={options.micro_batch}"]
        layout = alone if options.stage is None else []
        config = load_config(options.config, ["parallel.virtual=1", *layout, *given, *options.set])
        found, sent = shares(config, device, options.document_tokens, options.stage or 0)
        print(json.dumps(summary(config, found)) if options.json else report(config, device, found, sent))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
