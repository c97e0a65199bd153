"""The operations measured on one GPU beside their peers: correctness first, and no figure where that fails.

Each operation's folder has a bench.py that lists its cases; here are the inputs that they share (one packed
micro-batch of the published mixture, document lengths pinned), the clock, the machine's own limits (copy
bandwidth, matmul rate) against which a figure is held, and the report.  `python -m lst_kernels.bench
[OUT.json]`.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OURS = ("triton", "chunked")
"""Backends that are ours: held to their gradients, and never left out when they are wrong."""


@dataclass(frozen=True)
class Setting:
    """What is measured: a micro-batch's packed axes and the published 1B widths."""

    rows: int = 4
    units_per_row: int = 4096
    document_tokens: int = 1500
    """Length of every document, pinned: shorter documents make attention look faster."""
    local_dim: int = 1024
    local_heads: int = 16
    queries: int = 2
    window: int = 512
    global_heads: int = 16
    global_kv_heads: int = 16
    global_head_dim: int = 128
    vocabulary: int = 32768
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"

    def randn(self, *size: int) -> Tensor:
        """Random values in the setting's dtype, on its device."""
        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def patch_lengths(self) -> Tensor:
        """int64 [units]: of 242 units 19 are speech patches of 4 tokens (SPEC 10: 0.19 + 0.23 + 2.00)."""
        pattern = torch.ones(242, dtype=torch.long)
        pattern[torch.linspace(0, 241, 19).long()] = 4
        units = self.rows * self.units_per_row
        return pattern.repeat(-(-units // 242))[:units]

    def patches(self) -> tuple[Tensor, Tensor, int]:
        """(start, end, tokens), back to back."""
        lengths = self.patch_lengths()
        end = lengths.cumsum(0)
        return (end - lengths).int().to(self.device), end.int().to(self.device), int(end[-1])

    def causal(self, length: int, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """(k_start, k_end, document starts [n + 1]) of a packed axis of `length`."""
        t = torch.arange(length)
        begin = t // self.document_tokens * self.document_tokens
        if window is not None:
            begin = torch.maximum(begin, t - window + 1)
        starts = torch.arange(0, length + self.document_tokens, self.document_tokens).clamp(max=length)
        starts = torch.unique(starts)
        return begin.int().to(self.device), (t + 1).int().to(self.device), starts.int().to(self.device)


@dataclass
class Result:
    """One measured case."""

    op: str
    case: str
    backend: str
    direction: str
    milliseconds: float
    rate: float
    unit: str
    fraction: float
    """Of the machine's measured copy bandwidth or matmul rate."""


@dataclass(frozen=True)
class Machine:
    """What the GPU reached here, today, on plain work."""

    name: str
    copy_gbs: float
    matmul_tflops: float


class NoGpu(RuntimeError):
    """There is no CUDA device to measure on."""


def require_gpu() -> None:
    """Raise NoGpu, saying what to do, without a CUDA device and Triton."""
    from .backends import triton_version

    if not torch.cuda.is_available():
        raise NoGpu("the kernel benchmark needs a CUDA GPU, and this machine has none; nothing was measured")
    if triton_version() is None:
        raise NoGpu("the kernel benchmark needs triton (pip install triton); nothing was measured")


def milliseconds(run: Callable[[], object]) -> float:
    """Median time of `run` on the device, caches flushed between runs."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=50, rep=200, return_mode="median"))


def measure_machine() -> Machine:
    """Copy bandwidth over 2 GiB and bf16 matmul rate at 8192."""
    a = torch.empty(1 << 29, dtype=torch.float32, device="cuda")
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / milliseconds(lambda: b.copy_(a)) / 1e6
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * 8192**3 / milliseconds(lambda: x @ y) / 1e9
    return Machine(torch.cuda.get_device_name(), copy, rate)


@dataclass
class Case:
    """One thing to time: `work` is bytes moved or floating-point operations of a forward pass."""

    op: str
    case: str
    backend: str
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: list[Tensor]
    work: float
    backward_work: float
    kind: str  # "bytes" or "flops"


def gate(case: Case) -> None:
    """Output, and for our own kernels the gradients, against the reference in float64 on the same values.

    A peer's gradients are not held: where maxima tie, it may rightly share them out otherwise. Raises
    AssertionError, naming the tensor and the error, when they differ by more than the dtype's rounding
    allows.
    """
    held = case.backend in OURS
    ours = [t.detach().clone().requires_grad_(held) for t in case.inputs]
    theirs = [t.detach().double().requires_grad_() for t in case.inputs]
    out, want = case.run(*ours), case.reference(*theirs)
    compared = [("output", out.detach(), want.detach())]
    if held:
        grad = torch.randn_like(out)
        got = torch.autograd.grad(out, ours, grad)
        expected = torch.autograd.grad(want, theirs, grad.double())
        compared += [(f"gradient {i}", a, b) for i, (a, b) in enumerate(zip(got, expected, strict=True))]
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 5e-3}.get(out.dtype, 1e-4)
    for label, a, b in compared:
        error = float((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0))
        if not math.isfinite(error) or error > tolerance:
            name = f"{case.op} {case.case} {case.backend}"
            raise AssertionError(f"{name}: {label} is off by {error:.2e} (allowed {tolerance:.0e}): not timed")


def time_case(case: Case, machine: Machine) -> list[Result]:
    """Forward and backward of one case."""
    inputs = [t.detach().requires_grad_() for t in case.inputs]
    with torch.no_grad():
        forward = milliseconds(lambda: case.run(*inputs))
    out = case.run(*inputs)
    grad = torch.randn_like(out)
    backward = milliseconds(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True))
    limit, scale, unit = (
        (machine.copy_gbs, 1e6, "GB/s") if case.kind == "bytes" else (machine.matmul_tflops, 1e9, "TFLOP/s")
    )
    results = []
    for direction, ms, work in (
        ("forward", forward, case.work),
        ("backward", backward, case.backward_work),
    ):
        rate = work / ms / scale
        results.append(Result(case.op, case.case, case.backend, direction, ms, rate, unit, rate / limit))
    return results


def bench(setting: Setting | None = None) -> tuple[Machine, list[Result]]:
    """Gate, then time, every case of every operation.  A peer that fails is reported as such and left out.

    Raises NoGpu without a GPU, AssertionError when one of our own kernels is wrong.
    """
    require_gpu()
    from .interval_attention.bench import cases as interval_cases
    from .linear_cross_entropy.bench import cases as loss_cases
    from .patch_attention.bench import cases as attention_cases
    from .patch_pool.bench import cases as pool_cases
    from .rotary.bench import cases as rotary_cases

    setting = setting or Setting()
    machine = measure_machine()
    results: list[Result] = []
    for cases in (pool_cases, attention_cases, interval_cases, rotary_cases, loss_cases):
        for case in cases(setting):
            try:
                gate(case)
                results += time_case(case, machine)
            except Exception as error:
                if case.backend in OURS:
                    raise
                print(f"{case.op}, {case.case}: {case.backend} is left out: {error}", file=sys.stderr)
    return machine, results


def report(machine: Machine, results: Sequence[Result]) -> str:
    """A table for people."""
    lines = [f"{machine.name}: copy {machine.copy_gbs:.0f} GB/s, bf16 matmul {machine.matmul_tflops:.0f} TFLOP/s"]
    for r in results:
        lines.append(
            f"{r.op:20s} {r.case:28s} {r.backend:16s} {r.direction:8s} {r.milliseconds:9.3f} ms "
            f"{r.rate:8.1f} {r.unit:8s} {100 * r.fraction:5.1f} %"
        )
    return "\n".join(lines)


def record(machine: Machine, results: Sequence[Result], setting: Setting) -> dict[str, Any]:
    """Everything needed to read the figures later: machine, versions, date, commit, setting."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": asdict(machine),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "setting": {k: str(v) if isinstance(v, torch.dtype) else v for k, v in asdict(setting).items()},
        "results": [asdict(r) for r in results],
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the JSON file named by the first argument."""
    try:
        machine, results = bench()
    except NoGpu as error:
        print(error, file=sys.stderr)
        return 2
    print(report(machine, results))
    if arguments:
        Path(arguments[0]).write_text(json.dumps(record(machine, results, Setting()), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
