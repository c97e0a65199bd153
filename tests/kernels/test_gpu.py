"""What only a GPU can show: bfloat16, no host sync, the same bits twice, nothing compiled anew, and the clock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lst_kernels import (
    interval_attention,
    linear_cross_entropy,
    patch_attention,
    patch_pool,
    patch_unpool,
    rms_norm,
    rms_norm_residual,
    rotary,
    swiglu,
)

pytestmark = pytest.mark.gpu

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}
LENGTHS = [1, 4, 4, 2, 0, 1, 9, 3]
"""Of patches: 24 tokens in 8. Every fourth patch of 4 loses its last token, which then belongs to none."""


def inputs(units: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Tensors for every operation, of `units` patches (a multiple of 8) and three tokens for each."""
    torch.manual_seed(units)
    lengths = torch.tensor(LENGTHS).repeat(units // len(LENGTHS))
    end = lengths.cumsum(0)
    tokens, start = int(end[-1]), end - lengths
    owner = torch.repeat_interleave(torch.arange(units), lengths)
    end[2::32] -= 1
    owner[end[2::32]] = -1
    t = torch.arange(tokens)
    values = {
        "x": torch.randn(tokens, 256),
        "y": torch.randn(tokens, 256),
        "scale": torch.rand(256) + 0.5,
        "patches": torch.randn(units, 256),
        "queries": torch.randn(units, 2, 4, 64),
        "narrow": torch.randn(tokens, 4, 64),
        "wide": torch.randn(tokens, 8, 128),
        "few": torch.randn(tokens, 2, 128),
        "odd": torch.randn(tokens, 3, 20),
        "unit_keys": torch.randn(2 * units, 4, 64),
        "table": torch.randn(500, 256) * 0.1,
    }
    maps = {
        "start": start,
        "end": end,
        "owner": owner,
        "window_start": (t - 63).clamp(min=0),
        "document_start": t // 700 * 700,
        "after": t + 1,
        "unit_start": 2 * owner.cummax(0).values,
        "unit_end": 2 * owner.cummax(0).values + 2,
        "labels": torch.where(t % 7 == 0, -100, t % 500),
    }
    return {k: v.to("cuda", dtype) for k, v in values.items()} | {k: v.int().cuda() for k, v in maps.items()}


def _turned(i: dict[str, Tensor], backend: str) -> Tensor:
    x = i["odd"]
    angle = torch.arange(len(x), device=x.device)[:, None] / torch.arange(1, 11, device=x.device)
    return rotary(x, angle.cos(), angle.sin(), backend)


def _loss(i: dict[str, Tensor], backend: str) -> Tensor:
    return linear_cross_entropy(i["x"], i["table"], i["labels"], chunk=128, backend=backend)


Operation = Callable[[dict[str, Tensor], str], Tensor]
OPERATIONS: dict[str, tuple[tuple[str, ...], Operation]] = {
    "pool max": (("x",), lambda i, b: patch_pool(i["x"], i["start"], i["end"], "max", b)),
    "pool mean": (("x",), lambda i, b: patch_pool(i["x"], i["start"], i["end"], "mean", b)),
    "pool sum": (("x",), lambda i, b: patch_pool(i["x"], i["start"], i["end"], "sum", b)),
    "unpool": (("patches", "x"), lambda i, b: patch_unpool(i["patches"], i["owner"], i["x"], b)),
    "patch attention": (
        ("queries", "narrow"),
        lambda i, b: patch_attention(i["queries"], i["narrow"], i["narrow"], i["start"], i["end"], backend=b),
    ),
    "window": (
        ("narrow",),
        lambda i, b: interval_attention(*3 * [i["narrow"]], i["window_start"], i["after"], backend=b),
    ),
    "causal, grouped": (
        ("wide", "few"),
        lambda i, b: interval_attention(i["wide"], i["few"], i["few"], i["document_start"], i["after"], backend=b),
    ),
    "newest unit": (
        ("narrow", "unit_keys"),
        lambda i, b: interval_attention(
            i["narrow"], i["unit_keys"], i["unit_keys"], i["unit_start"], i["unit_end"], backend=b
        ),
    ),
    "odd width": (
        ("odd",),
        lambda i, b: interval_attention(*3 * [i["odd"]], i["window_start"], i["after"], backend=b),
    ),
    "rotary": (("odd",), _turned),
    "norm": (("x", "scale"), lambda i, b: rms_norm(i["x"], i["scale"], backend=b)),
    "norm and residual": (
        ("x", "scale", "y"),
        lambda i, b: torch.stack(rms_norm_residual(i["x"], i["scale"], i["y"], backend=b)),
    ),
    "swiglu": (("x",), lambda i, b: swiglu(i["x"], b)),
    "loss": (("x", "table"), _loss),
}


def outcome(name: str, i: dict[str, Tensor], backend: str) -> list[Tensor]:
    """Output and gradients of an operation."""
    differentiable, operation = OPERATIONS[name]
    i = i | {n: i[n].detach().requires_grad_() for n in differentiable}
    out = operation(i, backend)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    gradients = torch.autograd.grad(out, [i[n] for n in differentiable], weight.to(out.dtype))
    return [out.detach(), *gradients]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_float64_reference(name: str, dtype: torch.dtype) -> None:
    i = inputs(800, dtype)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in i.items()}
    found, want = outcome(name, i, "triton"), outcome(name, exact, "reference")
    for a, b in zip(found, want, strict=True):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max().clamp(min=1.0)


@contextmanager
def syncs_are_errors() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OPERATIONS)
def test_same_bits_twice_and_no_host_sync(name: str) -> None:
    i = inputs(4000)
    first = outcome(name, i, "triton")
    with syncs_are_errors():
        second = outcome(name, i, "triton")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_host_sync_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="synchronizing"), syncs_are_errors():
        torch.ones(1, device="cuda").item()


def compiled_by(run: Callable[[], object]) -> int:
    """Kernels that Triton compiles."""
    from triton import knobs

    count = 0

    def hook(*_: Any, **__: Any) -> bool:
        nonlocal count
        count += 1
        return False  # go on and compile

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = hook
    try:
        run()
    finally:
        knobs.runtime.jit_cache_hook = before
    return count


def test_another_number_of_tokens_compiles_nothing() -> None:
    """Numbers of tokens are multiples of 256 in training; one that is not even a multiple of 16 is another kernel."""

    def run(units: int) -> None:
        i = inputs(units)
        for name in OPERATIONS:
            outcome(name, i, "triton")

    run(1280)
    assert compiled_by(lambda: [run(units) for units in (1536, 2560, 3840)]) == 0
    assert compiled_by(lambda: run(8 * 161)) > 0


def test_flex_agrees() -> None:
    from lst_kernels.interval_attention.flex import interval_attention_flex

    i = inputs(320)
    for q, kv, first in (("narrow", "narrow", "window_start"), ("wide", "few", "document_start")):
        bounds = i[first], i["after"]
        ours = interval_attention(i[q], i[kv], i[kv], *bounds, backend="triton")
        flex = interval_attention_flex(i[q], i[kv], i[kv], *bounds, i[q].shape[-1] ** -0.5)
        torch.testing.assert_close(ours, flex, rtol=3e-2, atol=3e-2)


def test_auto_is_triton_on_a_gpu() -> None:
    i = inputs(80)
    for name in OPERATIONS:
        assert torch.equal(OPERATIONS[name][1](i, "auto"), OPERATIONS[name][1](i, "triton"))


def test_the_clock_leaves_out_what_launching_takes() -> None:
    """A kernel of microseconds behind a millisecond of Python; a run that waits for the device is timed whole."""
    from lst_kernels.bench import milliseconds

    x = torch.ones(1 << 20, device="cuda")

    def slowly(wait: bool) -> None:
        time.sleep(0.001)
        x.add_(1)
        if wait:
            x[0].item()
            time.sleep(0.001)
            x.add_(1)

    assert milliseconds(lambda _: slowly(False)) < 0.2
    assert milliseconds(lambda _: slowly(True)) > 0.9


def test_a_product_is_added_unrounded_and_in_place() -> None:
    """What `auto` takes for weights' gradients; the control: rounded first, as PyTorch's operators would."""
    from lst_kernels import add_product
    from lst_kernels.add_product.library import works_on

    torch.manual_seed(0)
    assert works_on(torch.device("cuda:0"), torch.bfloat16)
    into, left, right = torch.randn(256, 512), torch.randn(4096, 256), torch.randn(4096, 512)
    into, left, right = into.cuda(), left.cuda().bfloat16(), right.cuda().bfloat16()
    want = into.double() + left.double().t() @ right.double()
    rounded = into + left.t() @ right
    over = torch.full_like(into, float("nan"))
    add_product(over, left.t(), right, first=True)
    assert (over.double() - left.double().t() @ right.double()).abs().max() < 1e-2
    add_product(into, left.t(), right)
    assert (into.double() - want).abs().max() < 1e-2 < (rounded.double() - want).abs().max()


def test_adamw_is_pytorchs_and_the_same_bits_twice() -> None:
    from lst_kernels import adamw
    from lst_kernels.adamw.library import agrees

    assert agrees(torch.device("cuda"))

    def updated() -> list[Tensor]:
        torch.manual_seed(0)
        lists = [[torch.rand(n, device="cuda") for n in (5000, 40_001)] for _ in range(4)]
        copies = [torch.empty_like(p, dtype=torch.bfloat16) for p in lists[0]]
        by = torch.full((1,), 3.0, device="cuda")
        adamw(*lists, copies, by, step=2, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, decay=0.1)
        for p, copy in zip(lists[0], copies, strict=True):
            assert torch.equal(p.bfloat16(), copy)
        return [t for tensors in lists for t in tensors]

    assert all(torch.equal(a, b) for a, b in zip(updated(), updated(), strict=True))
