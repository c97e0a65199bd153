"""The Triton operators inside torch.compile and activation recomputation, and what is chosen where."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lst_kernels import (
    available_backends,
    choose_backend,
    interval_attention,
    patch_attention,
    patch_pool,
    patch_unpool,
    rms_norm,
    rms_norm_residual,
    rotary,
    swiglu,
)

TOKENS, HEADS, DIM = 20, 2, 16


def bounds() -> tuple[Tensor, Tensor]:
    start = torch.arange(0, TOKENS, 4, dtype=torch.int32)
    return start, start + 4


def patched(x: Tensor, start: Tensor, end: Tensor, backend: str) -> Tensor:
    """A small encoder: every operation once, one feeding the next."""
    t = torch.arange(TOKENS, dtype=torch.int32)
    heads = x.view(TOKENS, HEADS, DIM)
    angle = t[:, None] * torch.ones(DIM // 2)
    heads = rotary(heads, angle.cos(), angle.sin(), backend=backend)
    x = interval_attention(heads, heads, heads, torch.zeros_like(t), t + 1, backend=backend).reshape(TOKENS, -1)
    pooled = patch_pool(x, start, end, "max", backend=backend)
    heads = x.reshape(TOKENS, HEADS, DIM)
    mixed = patch_attention(pooled.view(-1, 1, HEADS, DIM), heads, heads, start, end, backend=backend)
    x = patch_unpool(mixed.reshape(-1, HEADS * DIM), t // 4, x, backend=backend)
    scale = torch.linspace(0.5, 1.5, HEADS * DIM, dtype=x.dtype)
    normed, total = rms_norm_residual(x, scale, x.flip(0), backend=backend)
    gated = swiglu(torch.cat((normed, total), dim=-1), backend)
    return rms_norm(total, scale, backend=backend) + gated


@pytest.mark.interpreter
@pytest.mark.parametrize("how", ["plain", "compiled", "recomputed"])
def test_triton_operators_compose(how: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(TOKENS, HEADS * DIM)
    start, end = bounds()

    def ours(x: Tensor) -> Tensor:
        return patched(x, start, end, "triton")

    run = {
        "plain": ours,
        "compiled": torch.compile(ours, fullgraph=True, backend="aot_eager"),
        "recomputed": lambda x: checkpoint(ours, x, use_reentrant=False),
    }[how]
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    out, want = run(a), patched(b, start, end, "reference")
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    want.backward(grad.double())
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)


def test_cpu_takes_the_reference() -> None:
    assert choose_backend("patch_pool", "cpu") == "reference"
    rows = {row["op"]: row for row in available_backends()}
    assert set(rows) == {
        "patch_pool",
        "patch_unpool",
        "patch_attention",
        "interval_attention",
        "rotary",
        "packed_attention",
        "rms_norm",
        "swiglu",
        "linear_cross_entropy",
        "adamw",
    }
    if not torch.cuda.is_available():
        assert all(row["chosen"] == "reference" for row in rows.values())


def test_cuda_takes_triton_but_not_for_float64() -> None:
    pytest.importorskip("triton")
    assert choose_backend("patch_pool", "cuda") == "triton"
    assert choose_backend("patch_pool", "meta") == "triton"
    assert choose_backend("patch_pool", "cuda", dtype=torch.float64) == "reference"


@pytest.mark.parametrize(
    ("op", "device", "backend", "message"),
    [
        ("pool", "cpu", "auto", "unknown operation"),
        ("patch_pool", "cpu", "flex", "has no backend"),
        ("patch_pool", "cpu", "triton", "needs CUDA tensors"),
        ("interval_attention", "cuda", "flex", "has no backend"),
    ],
)
def test_a_choice_is_never_replaced_silently(
    monkeypatch: pytest.MonkeyPatch, op: str, device: str, backend: str, message: str
) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        choose_backend(op, device, backend)
