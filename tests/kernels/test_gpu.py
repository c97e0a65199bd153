"""What only a GPU can show: bfloat16, no host sync, the same bits twice, no recompilation for a new
length."""

import pytest
import torch
from torch import Tensor

from lst_kernels import interval_attention, patch_attention, patch_pool, patch_unpool, rotary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def inputs(units: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    torch.manual_seed(units)
    lengths = torch.tensor([1, 4, 4, 2, 1]).repeat(units // 5)
    end = lengths.cumsum(0)
    start, tokens = (end - lengths).int(), int(end[-1])
    unit = torch.repeat_interleave(torch.arange(len(lengths)), lengths).int()
    t = torch.arange(tokens).int()
    values = {
        "x": torch.randn(tokens, 256).to(dtype),
        "q": torch.randn(len(lengths), 2, 4, 64).to(dtype),
        "kv": torch.randn(tokens, 4, 64).to(dtype),
        "start": start,
        "end": end.int(),
        "unit": unit,
        "k_start": (t - 63).clamp(min=0),
        "k_end": t + 1,
    }
    return {k: v.cuda() for k, v in values.items()}


def everything(i: dict[str, Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients of every operation."""
    x, q, kv = (i[n].detach().clone().requires_grad_() for n in ("x", "q", "kv"))
    pooled = patch_pool(x, i["start"], i["end"], backend=backend)
    back = patch_unpool(pooled, i["unit"], x, backend=backend)
    mixed = patch_attention(q, kv, kv, i["start"], i["end"], backend=backend)
    seen = interval_attention(kv, kv, kv, i["k_start"], i["k_end"], backend=backend)
    angle = torch.arange(len(kv), device=kv.device)[:, None] / torch.arange(1, 33, device=kv.device)
    turned = rotary(kv, angle.cos(), angle.sin(), backend)
    outs = [pooled, back, mixed, seen, turned]
    loss = sum((o.float().square().sum() for o in outs), torch.zeros((), device="cuda"))
    return [*[o.detach() for o in outs], *torch.autograd.grad(loss, (x, q, kv))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_equals_float64_reference(dtype: torch.dtype) -> None:
    i = inputs(200, dtype)
    want = everything({k: v.double() if v.is_floating_point() else v for k, v in i.items()}, "reference")
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}[dtype]
    for a, b in zip(everything(i, "triton"), want, strict=True):
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max().clamp(min=1.0)


def test_same_bits_twice_and_no_host_sync() -> None:
    i = inputs(2000)
    first = everything(i, "triton")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = everything(i, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_flex_agrees() -> None:
    i = inputs(300)
    kv = i["kv"]
    ours = interval_attention(kv, kv, kv, i["k_start"], i["k_end"], backend="triton")
    flex = interval_attention(kv, kv, kv, i["k_start"], i["k_end"], backend="flex")
    torch.testing.assert_close(ours, flex, rtol=3e-2, atol=3e-2)


def test_auto_is_triton_on_a_gpu() -> None:
    i = inputs(50)
    assert torch.equal(
        patch_pool(i["x"], i["start"], i["end"]), patch_pool(i["x"], i["start"], i["end"], backend="triton")
    )
