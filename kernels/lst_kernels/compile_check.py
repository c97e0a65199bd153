"""Compile every kernel for real GPUs on a machine without one, and hold what came out against what was meant.

The kernels go through their real host wrappers, so that a wrong signature or a lost alignment hint shows here
as it would on the card.  Checked for each: it compiles; nothing spills; shared memory within the target's
limit; 128-bit loads; tensor-core instructions in interval_attention; no atomics.  Speed is not checked: see
`lst_kernels.bench`. Compiled kernels stay in Triton's cache, so a second run takes seconds.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .launch import recording

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory (LDS) that one program may use."""
TENSOR_CORE = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
"""The instruction that the target's tensor cores are driven by."""


@dataclass(frozen=True)
class Shape:
    """The widths of one model (dtype bfloat16); `tensor` ranks share its heads, pooling is whole on each."""

    name: str
    local_dim: int
    local_heads: int
    queries: int
    """k, queries a patch."""
    global_heads: int
    global_kv_heads: int
    global_head_dim: int
    pooling: str = "max"
    tensor: int = 1

    @property
    def hidden(self) -> int:
        """Width of the global transformer."""
        return self.global_heads * self.global_head_dim

    def __post_init__(self) -> None:
        if self.local_heads % self.tensor or self.global_heads % self.tensor:
            raise ValueError(f"{self}: tensor must divide the heads")
        if self.local_dim % self.local_heads or self.global_heads % self.global_kv_heads:
            raise ValueError(f"{self}: local_heads must divide local_dim, and global_kv_heads global_heads")


PAPER = (
    Shape("1B", 1024, 16, 2, 16, 16, 128),
    Shape("7B", 1024, 16, 4, 32, 32, 128),
    Shape("70B", 2048, 32, 4, 64, 8, 128),
)
"""Widths of the published sizes; the smaller ones compile to the same kernels as 1B."""


@dataclass
class CompiledKernel:
    """What one kernel compiled to for one target."""

    kernel: str
    shape: str
    target: str
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    wide_loads: int = 0
    tensor_core: int = 0
    atomics: int = 0
    narrow: bool = False
    """Too narrow for full-width loads and tuned tiles: must compile and fit, and is not held to be fast."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as meant."""
        return not self.problems


class _CompileOnly:
    """A Triton driver that knows its target and owns no device."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget

        amd = name.startswith("gfx")
        self.name = name
        self.target = GPUTarget("hip", name, 64) if amd else GPUTarget("cuda", int(name.removeprefix("sm_")), 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return self.name  # Triton keeps compiled kernels per device: a name of its own for each target

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _work(shape: Shape, family: str, tokens: int) -> dict[str, Callable[[], object]]:
    """Host wrappers of every kernel at this shape, on small tensors that are never read."""
    from .adamw.triton import adamw_launch
    from .interval_attention.triton import interval_backward_launch, interval_forward_launch
    from .linear_cross_entropy.triton import softmax_ahead_launch, softmax_gradient_launch, softmax_statistics_launch
    from .packed_attention.triton import packed_backward_launch, packed_forward_launch
    from .patch_attention.triton import patch_attention_backward_launch, patch_attention_forward_launch
    from .patch_pool.triton import pool_backward_launch, pool_forward_launch
    from .patch_unpool.triton import unpool_backward_launch, unpool_forward_launch
    from .rms_norm.triton import norm_backward_launch, norm_forward_launch
    from .rotary.triton import rotary_launch
    from .swiglu.triton import swiglu_backward_launch, swiglu_forward_launch

    def bf16(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=torch.bfloat16)

    patches, d = tokens // 4, shape.local_dim
    dim, local = d // shape.local_heads, shape.local_heads // shape.tensor
    start = torch.arange(0, tokens, 4, dtype=torch.int32)
    end, index = start + 4, torch.arange(tokens, dtype=torch.int32) // 4
    interval, seen_by = torch.zeros(tokens, dtype=torch.int32), torch.zeros(2, tokens, dtype=torch.int32)
    winner = torch.empty(patches, d, dtype=torch.int16)
    x, p = bf16(tokens, d), bf16(patches, d)
    pq = bf16(patches, shape.queries, local, dim)
    kv = bf16(tokens, local, dim)
    lse = torch.empty(pq.shape[:3])
    logits, numbers, column = bf16(tokens, 32768 // shape.tensor), torch.empty(tokens), torch.arange(tokens)

    def softmax() -> None:
        softmax_statistics_launch(logits, column)
        softmax_gradient_launch(logits, numbers, column, numbers)
        softmax_ahead_launch(logits, column, numbers, numbers, numbers)

    param, grad, first, second = ([torch.empty(4096)] for _ in range(4))

    def adam() -> None:
        for copies in ([bf16(4096)], []):
            adamw_launch(param, grad, first, second, copies, numbers, 1, 1e-3, 0.9, 0.95, 1e-8, 0.1)

    work: dict[str, Callable[[], object]] = {
        "adamw": adam,
        f"patch_pool {shape.pooling}": lambda: (
            pool_forward_launch(x, start, end, shape.pooling),
            pool_backward_launch(p, start, end, winner, tokens, shape.pooling),
        ),
        "linear_cross_entropy": softmax,
        "patch_unpool": lambda: (
            unpool_forward_launch(p, index, x),
            unpool_backward_launch(x, index, patches),
        ),
        f"patch_attention k={shape.queries} D={dim}": lambda: (
            patch_attention_forward_launch(pq, kv, kv, start, end, 0.1),
            patch_attention_backward_launch(pq, pq, kv, kv, start, end, pq, lse, 0.1),
        ),
    }
    for width, hidden in sorted({d: 11 * d // 4 // 64 * 64, shape.hidden: shape.hidden * 11 // 4}.items()):
        states, gates, scales = bf16(tokens, width), bf16(tokens, 2 * hidden), torch.empty(tokens)
        weight, summed = bf16(width), torch.empty(width)

        def norm(
            x: torch.Tensor = states,
            weight: torch.Tensor = weight,
            scales: torch.Tensor = scales,
            summed: torch.Tensor = summed,
        ) -> None:
            norm_forward_launch(x, None, weight, 1e-5)
            norm_forward_launch(x, x, weight, 1e-5)
            norm_backward_launch(x, None, x, weight, scales)
            norm_backward_launch(x, x, x, weight, scales)
            for first in (True, False):
                norm_backward_launch(x, x, x, weight, scales, summed, first)

        def gate(x: torch.Tensor = gates, f: int = hidden) -> None:
            swiglu_forward_launch(x)
            swiglu_backward_launch(x[:, :f], x)

        work[f"rms_norm d={width}"] = norm
        work[f"swiglu F={hidden}"] = gate
    for heads, kv_heads, width in (
        (local, local, dim),
        (
            shape.global_heads // shape.tensor,
            max(1, shape.global_kv_heads // shape.tensor),
            shape.global_head_dim,
        ),
    ):
        q, k = bf16(tokens, heads, width), bf16(tokens, kv_heads, width)
        row = torch.empty(heads, tokens)
        table = torch.empty(tokens, width // 2)

        def turn(q: torch.Tensor = q, table: torch.Tensor = table) -> None:
            rotary_launch(q, table, table, False)
            rotary_launch(q, table, table, True)

        def attention(q: torch.Tensor = q, k: torch.Tensor = k, row: torch.Tensor = row) -> None:
            interval_forward_launch(q, k, k, interval, interval, 0.1, family)
            interval_backward_launch(q, q, k, k, interval, interval, q, row, 0.1, seen_by, family)

        packed, flat = (
            bf16(tokens, kv_heads, (heads // kv_heads + 2) * width),
            bf16(tokens * (heads + kv_heads) * width),
        )

        def together(
            x: torch.Tensor = packed,
            turned: torch.Tensor = flat,
            q: torch.Tensor = q,
            row: torch.Tensor = row,
            table: torch.Tensor = table,
            d: int = width,
        ) -> None:
            packed_forward_launch(x, table, table, interval, interval, d, 0.1, family)
            packed_backward_launch(q, x, table, table, interval, interval, q, turned, row, d, 0.1, seen_by, family)

        work[f"packed_attention D={width} group={heads // kv_heads}"] = together
        work[f"interval_attention D={width} group={heads // kv_heads}"] = attention
        work[f"rotary D={width}"] = turn
    return work


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _read_nvidia(result: CompiledKernel, compiled: Any) -> None:
    import triton

    ptx = compiled.asm["ptx"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [str(tool), "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    number = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    result.registers, result.spilled = number["REG"], number["STACK"] + number["LOCAL"]
    result.shared = compiled.metadata.shared
    result.wide_loads = _count(
        r"ld\.global[.\w:]*\.v4\.b32|cp\.async\.\w+\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x10", ptx
    )
    result.tensor_core = _count(re.escape(TENSOR_CORE[result.target]), ptx)
    result.atomics = _count(r"\b(?:atom|red)\.(?:global|gpu|sys|relaxed)", ptx)


def _read_amd(result: CompiledKernel, compiled: Any) -> None:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s*(\d+)", text)
        if found is None:
            raise RuntimeError(f"{result.kernel}: no .{key} in the assembly of {result.target}")
        return int(found.group(1))

    result.registers, result.shared = number("vgpr_count"), compiled.metadata.shared
    result.spilled = number("vgpr_spill_count") + number("private_segment_fixed_size")
    result.wide_loads = _count(r"(?:global|buffer)_load_dwordx4", text)
    result.tensor_core = _count(TENSOR_CORE[result.target], text)
    result.atomics = _count(r"(?:global|buffer|flat)_atomic", text)


def _narrow(operation: str, shape: Shape, lanes: int) -> bool:
    """Whether an operation's rows are too short for 128-bit loads by a whole warp, or its head dimension untuned."""
    if "D=" in operation:
        return int(operation.split("D=")[1].split()[0]) not in (64, 128)
    return shape.local_dim < 8 * lanes


def _judge(result: CompiledKernel) -> None:
    if result.spilled and not result.narrow:
        result.problems.append(f"spills ({result.spilled})")
    if result.shared > SHARED_LIMIT[result.target]:
        result.problems.append(f"shared memory {result.shared} B is over the limit of {SHARED_LIMIT[result.target]} B")
    if not result.wide_loads and not result.narrow:
        result.problems.append("no 128-bit loads")
    if result.kernel.startswith("interval") and not result.tensor_core and not result.narrow:
        result.problems.append(f"no {TENSOR_CORE[result.target]}")
    if result.atomics:
        result.problems.append(f"{result.atomics} atomics")


def check(
    shapes: Sequence[Shape] = PAPER,
    targets: Sequence[str] = TARGETS,
    only: str | None = None,
    lengths: Sequence[int] = (256,),
) -> list[CompiledKernel]:
    """Compile every kernel at `shapes` for `targets`; one result for each distinct kernel and target.

    `only` keeps the operations whose name begins so ("patch_pool").  `lengths` are packed axes: more than one shows
    whether a new length compiles anything new (it must not while all are multiples of 16).
    Raises ValueError on an unknown target, RuntimeError when Triton is missing or interprets
    (TRITON_INTERPRET=1). A kernel that does not compile is a result with the compiler's message as its problem.
    """
    from .backends import triton_version

    unknown = [t for t in targets if t not in TARGETS]
    if unknown:
        raise ValueError(f"unknown target {unknown[0]!r}; known: {', '.join(TARGETS)}")
    if triton_version() is None:
        raise RuntimeError("checking the kernels needs triton: pip install triton")
    from triton.runtime import driver

    from .patch_pool.triton import pool_forward

    if not hasattr(pool_forward, "warmup") or type(pool_forward).__name__ != "JITFunction":
        raise RuntimeError("checking the kernels needs Triton's compiler: unset TRITON_INTERPRET")
    results: list[CompiledKernel] = []
    for target in targets:
        seen: set[int] = set()
        before = driver._active
        driver.set_active(_CompileOnly(target))
        try:
            for shape, tokens in itertools.product(shapes, lengths):
                for name, work in _work(shape, target.replace("sm_", "sm"), tokens).items():
                    if name.startswith(only or ""):
                        lanes = 64 if target.startswith("gfx") else 32
                        result = CompiledKernel(
                            "", f"{name} ({shape.name})", target, narrow=_narrow(name, shape, lanes)
                        )
                        _compile(result, lanes, work, seen, results)
        finally:
            driver._active = before  # its reset looks for a GPU driver, and there may be none
    return results


def _compile(
    like: CompiledKernel, lanes: int, work: Callable[[], object], seen: set[int], results: list[CompiledKernel]
) -> None:
    """Run one host wrapper with every launch replaced by a compilation; results are copies of `like`, filled in."""

    def record(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        result = replace(like, kernel=kernel.__name__, problems=[])
        began = time.perf_counter()
        try:
            compiled = kernel.warmup(*args, grid=grid, **options)
            if id(compiled) in seen:  # the same kernel at another model's shape
                return
            seen.add(id(compiled))
            (_read_amd if result.target.startswith("gfx") else _read_nvidia)(result, compiled)
        except Exception as error:  # whatever the compiler threw is this kernel's finding
            result.problems.append(f"{type(error).__name__}: {str(error)[:300]}")
        else:
            _judge(result)
        result.seconds = time.perf_counter() - began
        results.append(result)

    with recording(record, lanes):
        work()


def report(results: Sequence[CompiledKernel]) -> str:
    """A table for people, problems last."""
    lines = [
        f"{'kernel':26s} {'target':7s} {'regs':>5s} {'spill':>5s} {'shared':>7s} {'128b':>5s} {'tensor':>6s} "
        f"{'s':>5s}  shape"
    ]
    for r in results:
        note = (" (narrow)" if r.narrow else "") + ("" if r.ok else "  <- " + "; ".join(r.problems))
        lines.append(
            f"{r.kernel:26s} {r.target:7s} {r.registers:5d} {r.spilled:5d} {r.shared:7d} {r.wide_loads:5d} "
            f"{r.tensor_core:6d} {r.seconds:5.1f}  {r.shape}{note}"
        )
    bad = sum(not r.ok for r in results)
    lines.append(f"{len(results)} kernels compiled, " + (f"{bad} with problems" if bad else "all as meant"))
    return "\n".join(lines)
