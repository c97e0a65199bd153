"""Attention by libraries: how each release is called, and a backward pass that repeats, restored flags and all.

The libraries themselves run on a GPU alone: here the reference stands behind their signatures.
"""

import importlib.metadata
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lst_kernels import interval_attention
from lst_kernels.libraries import document_attention, label, repeatable, varlen
from tests.support.varlen import set_to, stand_in, state

pytest.importorskip("torch.nn.attention.varlen")
BOUNDS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)
LONGEST = 7


def heads(query: int = 4, key: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    q, k, v = (torch.randn(13, n, 8, dtype=torch.float64, requires_grad=True) for n in (query, key, key))
    return q, k, v


def test_the_real_function_takes_the_call() -> None:
    """Without a GPU it says shapes alone."""
    q, k, v = inputs = [x.detach().bfloat16().to("meta").requires_grad_() for x in heads()]
    out = document_attention("varlen_attn", q, k, v, BOUNDS.to("meta"), LONGEST)
    assert out.shape == q.shape
    assert [grad.shape for grad in torch.autograd.grad(out.sum(), inputs)] == [x.shape for x in inputs]


@pytest.mark.parametrize("release", ["torch_2_10", "torch_2_11", "torch_2_13"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_every_release_gives_the_reference(release: str, key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, release)
    inputs = heads(4, key_heads)
    start = torch.tensor([0] * 5 + [5] + [6] * 7, dtype=torch.int32)
    end = torch.arange(1, 14, dtype=torch.int32)
    want = interval_attention(*inputs, start, end, backend="reference")
    found = document_attention("varlen_attn", *inputs, BOUNDS, LONGEST)
    grad = torch.randn_like(want)
    torch.testing.assert_close(found, want)
    for mine, theirs in zip(*(torch.autograd.grad(out, inputs, grad) for out in (found, want)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_release_without_windows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "torch_2_10")
    with pytest.raises(ValueError, match="has no window_size"):
        varlen(*heads(), BOUNDS, LONGEST, 3)


def test_flash_attn_is_asked_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def attend(*arguments: Any, **options: Any) -> Tensor:
        given.append((arguments[3:], options))
        return arguments[0]  # type: ignore[no-any-return]

    module = types.SimpleNamespace(flash_attn_varlen_func=attend)
    monkeypatch.setitem(sys.modules, "flash_attn", module)  # type: ignore[arg-type]
    document_attention("flash_attn", *heads(), BOUNDS, LONGEST)
    assert given == [((BOUNDS, BOUNDS, 7, 7), {"causal": True, "deterministic": True})]


@pytest.mark.parametrize("before", [(0, True), (1, True), (2, False)])
def test_the_backward_pass_alone_is_deterministic(before: tuple[int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stand_in(monkeypatch)
    inputs = heads()
    with set_to(*before):
        out = document_attention("varlen_attn", *inputs, BOUNDS, LONGEST)
        torch.autograd.grad(out.sum(), inputs)
        assert (seen.forward, seen.backward) == ([before], [(2, False)])
        assert state() == before
        torch.autograd.grad(varlen(*inputs, BOUNDS, LONGEST).sum(), inputs)
        assert seen.backward[1] == before, "the function itself does nothing of the kind"


def test_flags_are_restored_after_an_error() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            assert state() == (2, False)
            raise RuntimeError("out of memory")

    x = torch.randn(3, requires_grad=True)
    with set_to(1, True):
        with pytest.raises(RuntimeError, match="out of memory"):
            repeatable(Broken.apply, x).sum().backward()
        assert state() == (1, True)


def test_gradients_of_some_inputs_and_of_none() -> None:
    x, y = torch.randn(3, requires_grad=True), torch.randn(3)
    (grad,) = torch.autograd.grad(repeatable(torch.mul, x, y).sum(), x)
    assert torch.equal(grad, y)
    assert repeatable(torch.mul, y, y).grad_fn is None
    with torch.no_grad():
        assert repeatable(torch.mul, x, y).grad_fn is None
    out = repeatable(torch.mul, x, y).sum()
    torch.autograd.grad(out, x, retain_graph=True)
    with pytest.raises(RuntimeError, match="gone after one backward pass"):
        torch.autograd.grad(out, x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_recomputation(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stand_in(monkeypatch)
    inputs = heads()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return document_attention("varlen_attn", query, key, value, BOUNDS, LONGEST).square()

    want = torch.autograd.grad(attend(*inputs).sum(), inputs)
    checkpoint(attend, *inputs, use_reentrant=reentrant).sum().backward()
    for one, gradient in zip(inputs, want, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, gradient, rtol=0, atol=0)
    # Megatron-core's is reentrant. The other kind takes each of two graphs for one to recompute.
    assert len(seen.forward) == (3 if reentrant else 4)
    assert seen.backward == [(2, False)] * 2


def test_the_label_has_the_version_of_what_runs() -> None:
    assert label("varlen_attn") == f"varlen_attn {importlib.metadata.version('torch')}"
