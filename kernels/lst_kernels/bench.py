"""The operations measured on one GPU beside their peers: correctness first, and no figure where that fails.

Each operation's folder has a bench.py that lists its cases, from the inputs that they share (`bench_case`: one packed
micro-batch of the published mixture, document lengths pinned); here are the clock, the machine's own limits (copy
bandwidth, matmul rate) against which a figure is held, and the report.  What fails costs no other figure.
`python -m lst_kernels.bench [OUT.json]`.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .adamw.bench import cases as adamw_cases
from .bench_case import Case, Setting
from .interval_attention.bench import cases as interval_cases
from .linear_cross_entropy.bench import cases as loss_cases
from .packed_attention.bench import cases as packed_cases
from .patch_attention.bench import cases as attention_cases
from .patch_pool.bench import cases as pool_cases
from .rms_norm.bench import cases as norm_cases
from .rotary.bench import cases as rotary_cases
from .swiglu.bench import cases as swiglu_cases

OURS = ("triton", "chunked")
"""Backends that are ours: held to their gradients, and a problem of the whole benchmark when they are wrong."""
FLUSH = 256 << 20
"""Bytes written before each run: more than any L2 cache holds, so that every run begins with a cold one."""
CYCLES = 2e9
"""Clock cycles that a GPU does in a second at about most."""


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

    def __str__(self) -> str:
        return (
            f"{self.op:20s} {self.case:28s} {self.backend:16s} {self.direction:8s} {self.milliseconds:9.3f} ms "
            f"{self.rate:8.1f} {self.unit:8s} {100 * self.fraction:5.1f} %"
        )


@dataclass(frozen=True)
class Machine:
    """What the GPU reached here, today, on plain work."""

    name: str
    copy_gbs: float
    matmul_tflops: float

    def __str__(self) -> str:
        return f"{self.name}: copy {self.copy_gbs:.0f} GB/s, bf16 matmul {self.matmul_tflops:.0f} TFLOP/s"


@dataclass
class Benchmark:
    """What `bench` found."""

    setting: Setting
    machine: Machine
    results: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Kernels of ours that were wrong or failed, and how."""
    left_out: list[str] = field(default_factory=list)
    """Peers that were, or that this release of PyTorch does not have."""


class NoGpu(RuntimeError):
    """There is no CUDA device to measure on."""


def require_gpu(what: str = "the kernel benchmark") -> None:
    """Raise NoGpu, saying what to do, without a CUDA device and Triton."""
    from .backends import triton_version

    if not torch.cuda.is_available():
        raise NoGpu(f"{what} needs a CUDA GPU, and this machine has none; nothing was measured")
    if triton_version() is None:
        raise NoGpu(f"{what} needs triton (pip install triton); nothing was measured")


def milliseconds(run: Callable[[Any], object], prepare: Callable[[], Any] = lambda: None, budget: float = 0.3) -> float:
    """Median time of `run` on the device, with a cold L2 cache, without the time that its launches take the host.

    In a training step the host is ahead of the device.  Timed by itself, a kernel of 20 microseconds that Python
    needs 100 to launch would come out as 100.  So the device is kept busy while the host launches each run.  Where a
    run waits for the device itself, the waiting counts.

    Args:
        run: is called with what `prepare` made for it, in its own time: a graph to go back through, say.
        budget: seconds that all runs take together, about; there are at least five.
    """
    for _ in range(2):  # compiles, then warms up
        run(prepare())
    given = prepare()
    torch.cuda.synchronize()
    began = time.perf_counter()
    run(given)
    launching = time.perf_counter() - began
    torch.cuda.synchronize()
    whole = time.perf_counter() - began
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(max(5, min(200, int(budget / (whole + 2 * launching))))):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        given = prepare()
        flush.zero_()
        torch.cuda._sleep(int(2 * launching * CYCLES))
        before.record()
        run(given)
        after.record()
        times.append((before, after))
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in times)


def measure_machine() -> Machine:
    """Copy bandwidth over 2 GiB and bf16 matmul rate at 8192."""
    a = torch.empty(1 << 29, dtype=torch.float32, device="cuda")
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / milliseconds(lambda _: b.copy_(a)) / 1e6
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * 8192**3 / milliseconds(lambda _: x @ y) / 1e9
    return Machine(torch.cuda.get_device_name(), copy, rate)


def gate(case: Case, held: bool | None = None) -> None:
    """Output, and for our own kernels the gradients, against the reference in float64 on the same values.

    A peer's gradients are not held, unless `held` says so: where maxima tie, it may share them out otherwise. Raises
    AssertionError, naming the tensor and the error, when they differ by more than the dtype's rounding
    allows.
    """
    held = case.backend in OURS and case.differentiable if held is None else held
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


Clock = Callable[..., float]
"""What `milliseconds` is: (run, prepare) -> median time of `run`."""


def time_case(case: Case, machine: Machine, clock: Clock = milliseconds) -> list[Result]:
    """Forward and backward of one case."""
    inputs = [t.detach().requires_grad_() for t in case.inputs]
    with torch.no_grad():
        forward = clock(lambda _: case.run(*inputs))
    limit, scale, unit = (
        (machine.copy_gbs, 1e6, "GB/s") if case.kind == "bytes" else (machine.matmul_tflops, 1e9, "TFLOP/s")
    )
    measured = [("forward", forward, case.work)]
    if case.differentiable:
        measured.append(("backward", _backward(case, inputs, clock), case.backward_work))
    results = []
    for direction, ms, work in measured:
        rate = work / ms / scale
        results.append(Result(case.op, case.case, case.backend, direction, ms, rate, unit, rate / limit))
    return results


def _backward(case: Case, inputs: list[torch.Tensor], clock: Clock) -> float:
    grad = torch.randn_like(case.run(*inputs))
    # A new graph each time: a compiled one may not be kept for another pass.
    return clock(lambda out: torch.autograd.grad(out, inputs, grad), lambda: case.run(*inputs))


def operations() -> dict[str, Callable[[Setting], Iterator[Case]]]:
    """The cases of every operation; a case's inputs are made when it is asked for."""
    return {
        "patch_pool": pool_cases,
        "patch_attention": attention_cases,
        "interval_attention": interval_cases,
        "rotary": rotary_cases,
        "packed_attention": packed_cases,
        "rms_norm": norm_cases,
        "swiglu": swiglu_cases,
        "linear_cross_entropy": loss_cases,
        "adamw": adamw_cases,
    }


def bench(
    setting: Setting,
    tell: Callable[[str], object] = print,
    measured: dict[str, Callable[[Setting], Iterator[Case]]] | None = None,
    machine: Machine | None = None,
    clock: Clock = milliseconds,
) -> Benchmark:
    """Gate, then time, every case of every operation.  Whatever fails is left out; the rest is measured.

    Each case's lines go to `tell` as soon as it is done.  Raises NoGpu without a GPU.

    Args:
        measured: the operations; None: all of them.
        machine: what figures are held against; None: this machine's GPU, measured first.
        clock: times a run.
    """
    if machine is None:
        require_gpu()
        machine = measure_machine()
    found = Benchmark(setting, machine)
    tell(str(found.machine))
    # PyTorch gives up on compiling a function that has had eight variants, and calls it as it is: a peer would then be
    # timed uncompiled.  Here every case's shapes are variants, forward and backward.
    with torch._dynamo.config.patch(recompile_limit=100, fail_on_recompile_limit_hit=True):
        for name, cases in (operations() if measured is None else measured).items():
            try:
                for case in cases(setting):
                    _measure(case, found, tell, clock)
            except Exception as error:
                found.problems.append(f"{name}: no more cases: {error}")
                tell(found.problems[-1])
    return found


def _measure(case: Case, found: Benchmark, tell: Callable[[str], object], clock: Clock) -> None:
    try:
        gate(case)
        results = time_case(case, found.machine, clock)
    except Exception as error:
        where = found.problems if case.backend in OURS else found.left_out
        where.append(f"{case.op}, {case.case}, {case.backend}: {error}")
        tell(f"not timed: {where[-1]}")
        return
    found.results += results
    for result in results:
        tell(str(result))


def record(found: Benchmark) -> dict[str, Any]:
    """Everything needed to read the figures later: machine, versions, date, commit, setting, what failed."""
    commit = ""
    with contextlib.suppress(OSError):  # git may not be there
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = asked.stdout.strip()
    return {
        "machine": asdict(found.machine),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "setting": {k: str(v) if isinstance(v, torch.dtype) else v for k, v in asdict(found.setting).items()},
        "l2_cache": "cold",
        "results": [asdict(r) for r in found.results],
        "problems": found.problems,
        "left_out": found.left_out,
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the JSON file named by the first argument. 1: a kernel of ours was wrong."""
    try:
        found = bench(Setting())
    except NoGpu as error:
        print(error, file=sys.stderr)
        return 2
    if arguments:
        Path(arguments[0]).write_text(json.dumps(record(found), indent=1) + "\n")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
