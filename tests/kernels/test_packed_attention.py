"""packed_attention against its parts in float64: outputs and the gradient of the whole projection."""

import pytest
import torch
from torch import Tensor

from lst_kernels import interval_attention, packed_attention, queries_of_keys, rotary
from tests.kernels.test_patch_pool import HALVES, compare
from tests.kernels.test_rotary import tables


def bounds(tokens: int) -> tuple[Tensor, Tensor]:
    """Documents of 7 tokens, a window of 5."""
    t = torch.arange(tokens)
    return torch.maximum(t // 7 * 7, t - 4).int(), (t + 1).int()


def by_hand(qkv: Tensor, cos: Tensor, sin: Tensor, start: Tensor, end: Tensor, size: int) -> Tensor:
    """Head by head: query head h of group g stands at h * D of the group, key and value at its end."""
    queries = qkv.shape[2] // size - 2
    heads = []
    for g in range(qkv.shape[1]):
        key, value = qkv[:, g : g + 1, -2 * size : -size], qkv[:, g : g + 1, -size:]
        for r in range(queries):
            query = qkv[:, g : g + 1, r * size : (r + 1) * size]
            turned = (rotary(x, cos, sin) for x in (query, key))
            heads.append(interval_attention(*turned, value, start, end))
    return torch.cat(heads, dim=1)


@pytest.mark.parametrize(("groups", "queries"), [(2, 1), (2, 3)])
def test_reference(groups: int, queries: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(16, groups, (queries + 2) * 4, dtype=torch.float64, requires_grad=True)
    cos, sin = (t.double() for t in tables(16, 2))
    out, want = packed_attention(qkv, cos, sin, *bounds(16), 4), by_hand(qkv, cos, sin, *bounds(16), 4)
    torch.testing.assert_close(out, want)
    grad = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, qkv, grad), torch.autograd.grad(want, qkv, grad))


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "groups", "queries", "size"), [(40, 2, 1, 16), (37, 2, 3, 16), (21, 2, 3, 8), (5, 1, 2, 6)]
)
def test_triton(tokens: int, groups: int, queries: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = torch.randn(tokens, groups, (queries + 2) * size).to(dtype).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    cos, sin = tables(tokens, size // 2)
    out = packed_attention(ours, cos, sin, *bounds(tokens), size, backend="triton")
    want = by_hand(theirs, cos.double(), sin.double(), *bounds(tokens), size)
    compare(out, want, HALVES[dtype])
    grad = torch.randn(tokens, groups * queries, size).to(dtype)
    (a,), (b,) = torch.autograd.grad(out, ours, grad), torch.autograd.grad(want, theirs, grad.double())
    compare(a, b, 4 * HALVES[dtype])
    seen_by = queries_of_keys(*bounds(tokens), tokens)
    out = packed_attention(ours, cos, sin, *bounds(tokens), size, backend="triton", seen_by=seen_by)
    assert torch.equal(torch.autograd.grad(out, ours, grad)[0], a), "intervals turned round before: the same bits"
    swapped = torch.cat((b[..., : -2 * size], b[..., -size:], b[..., -2 * size : -size]), dim=-1)
    with pytest.raises(AssertionError):  # the control: the gradients of keys and values the other way round
        compare(a, swapped, 4 * HALVES[dtype])


@pytest.mark.parametrize(
    ("qkv", "half", "message"),
    [
        (torch.zeros(3, 2, 12), 3, r"cos and sin must be \[3, 2\]"),
        (torch.zeros(3, 2, 8), 2, "must hold R"),
        (torch.zeros(3, 12), 2, "qkv must be"),
    ],
)
def test_bad_input(qkv: Tensor, half: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed_attention(qkv, torch.zeros(3, half), torch.zeros(3, half), *bounds(3), 4)


def test_bad_intervals_of_keys() -> None:
    arguments = (torch.zeros(9, 2, 12), torch.zeros(9, 2), torch.zeros(9, 2), *bounds(9), 4)
    right = queries_of_keys(*bounds(9), 9)
    packed_attention(*arguments, seen_by=right)
    with pytest.raises(ValueError, match="packed_attention: seen_by must hold the queries"):
        packed_attention(*arguments, seen_by=right.flip(0))


@pytest.mark.interpreter
def test_opcheck() -> None:
    from lst_kernels.packed_attention.library import attend

    qkv = torch.randn(8, 2, 16, requires_grad=True)
    torch.library.opcheck(attend, (qkv, *tables(8, 2), *bounds(8), 4, 0.5))
    torch.library.opcheck(attend, (qkv, *tables(8, 2), *bounds(8), 4, 0.5, queries_of_keys(*bounds(8), 8)))


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("hidden", [0, 20])
def test_tiles_that_need_no_mask(hidden: int) -> None:
    """One document over several tiles of 16: those between a tile's first and last key are not masked.

    hidden: keys that later queries no longer see, in the middle of a tile: taken as a whole tile they would count.
    """
    torch.manual_seed(0)
    tokens = 70
    ours = torch.randn(tokens, 1, 3 * 16).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    t = torch.arange(tokens)
    start, end = torch.where(t < 40, 0, hidden).int(), (t + 1).int()
    cos, sin = tables(tokens, 8)
    out = packed_attention(ours, cos, sin, start, end, 16, backend="triton")
    want = packed_attention(theirs, cos.double(), sin.double(), start, end, 16)
    compare(out, want, 1e-5)
    grad = torch.randn_like(out)
    (a,), (b,) = torch.autograd.grad(out, ours, grad), torch.autograd.grad(want, theirs, grad.double())
    compare(a, b, 1e-4)
    other = packed_attention(theirs, cos.double(), sin.double(), (start - start.clamp(max=4)), end, 16)
    assert hidden == 0 or (other - want).abs().max() > 1e-3, "the control: four keys more would show"
