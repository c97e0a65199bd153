"""rms_norm, alone and with its residual, against its formula in float64: outputs and gradients."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from lst_kernels import rms_norm, rms_norm_residual
from tests.kernels.test_patch_pool import HALVES, compare

BACKENDS = ["reference", pytest.param("triton", marks=pytest.mark.interpreter)]


def formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def inputs(rows: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """x as a view of something wider, the weight, and the residual."""
    torch.manual_seed(rows)
    x, residual = torch.randn(rows, 2 * d)[:, :d], torch.randn(rows, d)
    return [t.to(dtype) for t in (x, torch.rand(d) + 0.5, residual)]


def outcome(tensors: list[Tensor], grads: tuple[Tensor, ...], backend: str, adds: bool, kept: bool) -> list[Tensor]:
    """Outputs and gradients; `kept`: the sum's own gradient flows as well."""
    x, weight, residual = (t.detach().requires_grad_() for t in tensors)
    wanted = [x, weight, residual] if adds else [x, weight]
    if backend == "formula":
        total = residual + x if adds else x
        outs = [formula(total, weight, 1e-3), total]
    else:
        outs = list(rms_norm_residual(x, weight, residual if adds else None, 1e-3, backend))
    count = 2 if kept else 1
    found = torch.autograd.grad(outs[:count], wanted, [g.to(outs[0].dtype) for g in grads[:count]])
    return [*(out.detach() for out in outs), *found]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_reference(adds: bool, kept: bool) -> None:
    tensors = inputs(7, 12, torch.float64)
    grads = (torch.randn(7, 12).double(), torch.randn(7, 12).double())
    found, want = (outcome(tensors, grads, backend, adds, kept) for backend in ("reference", "formula"))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("x", "weight", "residual", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(5), None, "weight must be"),
        (torch.zeros(3, 4), torch.zeros(4, dtype=torch.float64), None, "dtypes must agree"),
        (torch.zeros(3, 4), torch.zeros(4), torch.zeros(2, 4), "residual must be like x"),
    ],
)
def test_bad_input(x: Tensor, weight: Tensor, residual: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm_residual(x, weight, residual)


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("rows", "d"), [(5, 8), (1, 1), (3, 100)])
@pytest.mark.parametrize(("adds", "kept"), [(True, True), (True, False), (False, True), (False, False)])
def test_triton(rows: int, d: int, dtype: torch.dtype, adds: bool, kept: bool) -> None:
    tensors = inputs(rows, d, dtype)
    # gradients come as views too
    grads = tuple(torch.randn(rows, 2 * d).to(dtype)[:, ::2] for _ in range(2))
    found = outcome(tensors, grads, "triton", adds, kept)
    want = outcome([t.double() for t in tensors], tuple(g.double() for g in grads), "formula", adds, kept)
    for a, b in zip(found, want, strict=True):
        assert a.dtype == dtype
        compare(a, b, HALVES[dtype])


@pytest.mark.interpreter
def test_shapes_of_layers_and_of_nothing() -> None:
    """[n, 1, d] as layers have it; the sum of one input is that input, not a copy."""
    x, weight = torch.randn(6, 1, 8, requires_grad=True), torch.rand(8, requires_grad=True)
    out, total = rms_norm_residual(x, weight, backend="triton")
    assert out.shape == total.shape == x.shape
    assert total.data_ptr() == x.data_ptr()
    torch.testing.assert_close(rms_norm(x, weight, backend="triton"), out)
    empty = torch.zeros(0, 1, 8, requires_grad=True)
    rms_norm(empty, weight, backend="triton").sum().backward()
    assert empty.grad is not None
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.interpreter
def test_the_weights_gradient_needs_every_row() -> None:
    """The control of the partial sums: with a row left out the comparison fails."""
    tensors = inputs(520, 4, torch.float32)  # more rows than programs: two of them to each
    grads = (torch.randn(520, 4), torch.randn(520, 4))
    found = outcome(tensors, grads, "triton", True, True)[3]
    want = outcome([t.double() for t in tensors], tuple(g.double() for g in grads), "formula", True, True)[3]
    compare(found, want, 1e-5)
    grads[0][519] = 0
    other = outcome([t.double() for t in tensors], tuple(g.double() for g in grads), "formula", True, True)[3]
    with pytest.raises(AssertionError):
        compare(found, other, 1e-5)


def in_place(tensors: list[Tensor], grads: tuple[Tensor, ...], backend: str, first: bool) -> list[Tensor]:
    """Gradients of x, of the weight, where it was wanted, and of the residual."""
    x, weight, residual = (t.detach().requires_grad_() for t in tensors)
    target = torch.full((len(weight),), float("nan") if first else 1 / 3)
    asked = Mock(return_value=(target, first))
    outs = rms_norm_residual(x, weight, residual, 1e-3, backend, into=asked)
    asked.assert_not_called()
    torch.autograd.backward(outs, [g.to(x.dtype) for g in grads])
    asked.assert_called_once()
    assert weight.grad is not None, "hooks run"
    assert x.grad is not None
    assert residual.grad is not None
    return [x.grad, target, residual.grad]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("reference", torch.float32),
        *(pytest.param("triton", dtype, marks=pytest.mark.interpreter) for dtype in HALVES),
    ],
)
def test_the_weights_gradient_goes_where_it_is_wanted(backend: str, dtype: torch.dtype, first: bool) -> None:
    """Written, then added; in float32, not rounded to the weight's dtype."""
    tensors = inputs(5, 100, dtype)
    grads = tuple(torch.randn(5, 100).to(dtype) for _ in range(2))
    found = in_place(tensors, grads, backend, first)
    wide, steep = [t.double() for t in tensors], tuple(g.double() for g in grads)
    total = (tensors[0] + tensors[2]).double()  # rounded as it is kept
    rounded = outcome([total, wide[1], wide[2]], steep, "formula", False, True)[3]
    want = outcome(wide, steep, "formula", True, True)[2:]
    compare(found[1], rounded + (0 if first else 1 / 3), 1e-6)
    compare(found[0], want[0], HALVES[dtype])
    assert torch.equal(found[0], found[2])
    if dtype == torch.float16:
        with pytest.raises(AssertionError):
            compare(rounded.half(), rounded, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", [torch.zeros(7), torch.zeros(8, dtype=torch.float16), torch.zeros(16)[::2]])
def test_a_target_that_does_not_fit(backend: str, target: Tensor) -> None:
    x, weight = torch.randn(3, 8), torch.rand(8, requires_grad=True)
    with pytest.raises(ValueError, match="into must give a contiguous"):
        rms_norm(x, weight, backend=backend, into=lambda: (target, True)).sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_weight_has_no_gradient_to_put_anywhere(backend: str) -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.rand(8)
    target = torch.zeros(8)
    rms_norm(x, weight, backend=backend, into=lambda: (target, False)).sum().backward()
    assert x.grad is not None
    assert not target.any()


@pytest.mark.interpreter
def test_opcheck() -> None:
    from lst_kernels.rms_norm.library import added_and_normed, norm_backward, norm_backward_into, normed

    x, weight = torch.randn(5, 8), torch.rand(8)
    torch.library.opcheck(normed, (x, weight, 1e-5))
    torch.library.opcheck(added_and_normed, (x, x.clone(), weight, 1e-5))
    for beside in (None, torch.randn(5, 8)):
        given = (x.clone(), beside, x, weight, torch.rand(5))
        torch.library.opcheck(norm_backward, given)
        torch.library.opcheck(norm_backward_into, (*given, torch.zeros(8), False))
