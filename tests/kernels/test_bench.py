"""The benchmark's cases are right (every one through its gate, under the interpreter), and it refuses without
a GPU."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lst_kernels.bench import OURS, Benchmark, Case, Machine, NoGpu, Setting, bench, gate, main, record, time_case

TINY = Setting(
    rows=1,
    units_per_row=30,
    document_tokens=20,
    local_dim=32,
    local_heads=2,
    window=8,
    global_heads=2,
    global_kv_heads=1,
    global_head_dim=16,
    global_ffn=40,
    vocabulary=50,
    dtype=torch.float32,
    device="cpu",
)


def test_mixture() -> None:
    setting = Setting(units_per_row=242, rows=2, device="cpu")
    lengths = setting.patch_lengths()
    assert lengths.sum() == 2 * (19 * 4 + 223), "SPEC 10: 2.42 units hold 3.00 tokens"
    start, end, tokens = setting.patches()
    assert torch.equal(start[1:], end[:-1])
    assert tokens == 598


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refuses_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoGpu, match="nothing was measured"):
        bench(TINY)
    assert main([]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err


def small_case(backend: str, error: float) -> Case:
    x = torch.randn(4, 4)
    return Case("op", "case", backend, lambda x: x * (2 + error), lambda x: x * 2, [x], 8e6, 16e6, "bytes")


def test_gate() -> None:
    gate(small_case("triton", 0.0))
    with pytest.raises(AssertionError, match="op case triton: output is off by"):
        gate(small_case("triton", 0.1))
    wrong = replace(small_case("triton", 0.0), run=lambda x: x.detach() * 2 + x * 0)
    with pytest.raises(AssertionError, match="gradient 0 is off"):
        gate(wrong)
    gate(replace(wrong, backend="peer"))
    gate(replace(wrong, differentiable=False))


def two_milliseconds(run: Callable[[Any], object], prepare: Callable[[], Any] | None = None) -> float:
    return 2.0


def test_rates() -> None:
    machine = Machine("test", copy_gbs=8.0, matmul_tflops=1.0)
    forward, backward = time_case(small_case("triton", 0.0), machine, two_milliseconds)
    assert (forward.rate, forward.unit, forward.fraction) == (4.0, "GB/s", 0.5)
    assert backward.rate == 8.0
    assert "50.0 %" in str(forward)
    assert record(Benchmark(TINY, machine, [forward]))["results"][0]["milliseconds"] == 2.0


def test_what_fails_costs_no_other_figure() -> None:
    """A kernel of ours that is wrong, a peer that is, an operation whose inputs cannot be made: told, not timed."""

    def broken(setting: Setting) -> Iterator[Case]:
        yield small_case("triton", 0.0)
        raise RuntimeError("out of memory")

    wrong = [small_case("triton", 0.1), small_case("peer", 0.1), small_case("chunked", 0.0)]
    told: list[str] = []
    measured = {"broken": broken, "wrong": lambda setting: iter(wrong)}
    found = bench(TINY, told.append, measured, Machine("test", 8.0, 1.0), two_milliseconds)
    assert [(r.backend, r.direction) for r in found.results] == [
        ("triton", "forward"), ("triton", "backward"), ("chunked", "forward"), ("chunked", "backward"),
    ]  # fmt: skip
    assert [p.split(": ")[0] for p in found.problems] == ["broken", "op, case, triton"]
    assert len(found.left_out) == 1 and "peer" in found.left_out[0]
    assert len(told) == 1 + 4 + 3
    assert record(found)["problems"] == found.problems


def test_no_peer_is_timed_uncompiled() -> None:
    """PyTorch goes on uncompiled, with a warning, after a function's eighth variant; in here it may have more."""
    from torch._dynamo.utils import counters

    def compiled_by(shapes: Iterable[int]) -> int:
        torch._dynamo.reset()
        before = counters["stats"]["unique_graphs"]
        double = torch.compile(lambda x: x * 2, dynamic=False, backend="eager")
        for n in shapes:
            double(torch.ones(n))
        return counters["stats"]["unique_graphs"] - before

    counted = []

    def cases(setting: Setting) -> Iterator[Case]:
        counted.append(compiled_by(range(2, 22)))
        yield from ()

    assert compiled_by(range(2, 22)) == 8, "the limit that is lifted"
    assert not bench(TINY, lambda line: None, {"op": cases}, Machine("test", 8.0, 1.0)).problems
    assert counted == [20]


def test_a_compiled_peer_goes_back_as_often_as_it_is_timed() -> None:
    """A compiled backward pass may take over what the forward pass kept, and then refuses to be repeated."""

    def wave(x: Tensor) -> Tensor:
        return (x @ x).sin() @ x

    def thrice(run: Callable[[Any], object], prepare: Callable[[], Any] = lambda: None) -> float:
        return float(sum(run(prepare()) is not None for _ in range(3)))

    torch._dynamo.reset()
    compiled = torch.compile(wave, backend="aot_eager")
    out = compiled(torch.randn(4, 4, requires_grad=True)).sum()
    compiled(torch.randn(4, 4, requires_grad=True)).sum().backward()
    with pytest.raises(RuntimeError, match="donated"):
        out.backward(retain_graph=True)
    peer = Case("op", "case", "compiled", compiled, wave, [torch.randn(4, 4)], 1.0, 1.0, "bytes")
    machine = Machine("test", 8.0, 1.0)
    assert [r.milliseconds for r in time_case(peer, machine, thrice)] == [3.0, 3.0]
    assert [r.direction for r in time_case(replace(peer, differentiable=False), machine, thrice)] == ["forward"]


@pytest.mark.interpreter
@pytest.mark.parametrize("op", ["patch_pool", "patch_attention", "interval_attention", "linear_cross_entropy", "adamw"])
def test_every_case_passes_its_gate(op: str) -> None:
    cases = importlib.import_module(f"lst_kernels.{op}.bench").cases(TINY)
    names = set()
    with torch.compiler.set_stance("force_eager"):  # peers uncompiled: what they compute is the point
        for case in cases:
            names.add(case.backend)
            if case.backend != "varlen_attn":  # runs on a GPU alone
                gate(case)
    assert names & set(OURS)
    assert len(names) >= 2
