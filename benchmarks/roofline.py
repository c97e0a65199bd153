"""The least time that a step can take on a device: every operator's FLOPs and bytes, at the device's full rates.

    python -m benchmarks.roofline configs/lst-1b.yaml [--device h200] [--micro-batch 4] [--document-tokens 1500]

An estimate from a data sheet, not a measurement: nothing runs but a trace (`benchmarks.trace`).  Kernels reach part of
these rates, launches cost time, and tiles of attention compute masked pairs.  It says where the time would go before a
GPU is at hand, which operators are worth fusing, and which goal no tuning can reach.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.rows import synthetic_rows
from benchmarks.trace import Operation, trace_micro_batch, traced_batch, traced_model
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.flops.counter import parameters
from megatron_lst.flops.work import Work, row_work
from megatron_lst.planning.devices import Device, find_device

KINDS = {
    "matrix products": ("aten.mm", "aten.bmm", "aten.addmm"),
    "attention": ("lst_kernels.interval_attention", "lst_kernels.patch_attention"),
    "rotary": ("lst_kernels.rotary",),
    "pooling": ("lst_kernels.patch_pool", "lst_kernels.patch_unpool"),
    "norms": ("lst_trace.rms_norm",),
    "SwiGLU": ("lst_trace.swiglu",),
}
ADAM_BYTES = 4 + 10 + 4 + 30
"""Of each parameter in bf16, in a step: gradients zeroed, added up (bf16 onto fp32), their norm, AdamW with masters."""


@dataclass
class Share:
    """One kind of operation: calls, bytes, FLOPs, and the least seconds that they take."""

    calls: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, moved: float, flops: float, device: Device) -> None:
        self.calls += 1
        self.bytes += moved
        self.flops += flops
        self.seconds += max(moved / device.bandwidth, flops / device.peak)


def attention_flops(op: Operation, work: Work, units: int, queries: int) -> float:
    """Visible pairs alone: two products a pair forward, five backward, which computes the scores again."""
    heads, size = op.shapes[0][-2:]
    counted, keys = op.shapes[0][0], op.shapes[1][0]
    if "patch_attention" in op.name:
        pairs = work.patch_pairs * queries
    elif counted == keys == units:
        pairs = work.global_pairs
    elif keys == units * queries:
        pairs = work.cross_pairs * queries
    else:
        pairs = work.decoder_pairs if abs(counted - work.decoder_tokens) < 512 else work.encoder_pairs
    return (10 if op.backward and "backward" in op.name else 4) * pairs * heads * size


def shares(config: Config, device: Device, document_tokens: int) -> dict[str, Share]:
    """A step of one micro-batch on one device, by kind of operation."""
    rows = list(islice(synthetic_rows(config, document_tokens), config.training.micro_batch))
    work = sum((row_work(config, row) for row in rows), Work())
    with traced_model(config) as chunk:
        trace = trace_micro_batch(chunk, traced_batch(rows, config))
    units = config.training.micro_batch * config.data.units
    found = {kind: Share() for kind in (*KINDS, "loss", "other elementwise", "gradients and AdamW")}
    for op in trace.operations:
        kind = next((k for k, names in KINDS.items() if op.name.startswith(names)), "other elementwise")
        if kind == "other elementwise" and any(config.vocabulary.padded_size in shape for shape in op.shapes):
            kind = "loss"
        flops = attention_flops(op, work, units, config.model.queries) if kind == "attention" else op.flops
        found[kind].add(op.bytes, flops, device)
    found["gradients and AdamW"].add(float(ADAM_BYTES * parameters(config)), 0.0, device)
    return found


def report(config: Config, device: Device, found: dict[str, Share]) -> str:
    """Markdown."""
    total = sum(share.seconds for share in found.values())
    units = config.training.micro_batch * config.data.units
    lines = ["| | operators | GB | TFLOP | least ms | share |", "|---|---:|---:|---:|---:|---:|"]
    for kind, s in found.items():
        amounts = f"{s.calls} | {s.bytes / 1e9:.1f} | {s.flops / 1e12:.2f} | {s.seconds * 1e3:.1f}"
        lines.append(f"| {kind} | {amounts} | {s.seconds / total:.0%} |")
    flops, moved = sum(s.flops for s in found.values()), sum(s.bytes for s in found.values())
    calls = sum(s.calls for s in found.values())
    lines.append(f"| all | {calls} | {moved / 1e9:.1f} | {flops / 1e12:.2f} | {total * 1e3:.1f} | |")
    bound = f"{total * 1e3:.0f} ms, so at most {units / total:,.0f} units/s"
    lines += ["", f"Least time of a step of {units} units on {device.name}: {bound}."]
    return "\n".join([*lines, "An estimate from a data sheet, not a measurement."])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--device", default="h200")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--document-tokens", type=int, default=1500)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for lst train")
    options: Any = parser.parse_args(arguments)
    try:
        device = find_device(options.device)
        if device is None:
            raise UserError(f"--device {options.device!r} is not known; see megatron_lst/planning/devices.py")
        alone = ["parallel.tensor=1", "parallel.pipeline=1", "parallel.sequence=false", "parallel.virtual=1"]
        sized = [f"training.micro_batch={options.micro_batch}", *alone]
        config = load_config(options.config, [*sized, *options.set])
        print(report(config, device, shares(config, device, options.document_tokens)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
