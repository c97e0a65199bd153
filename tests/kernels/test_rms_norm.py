"""rms_norm, alone and with its residual, against its formula in float64: outputs and gradients."""

import pytest
import torch
from torch import Tensor

from lst_kernels import rms_norm, rms_norm_residual
from tests.kernels.test_patch_pool import HALVES, compare


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


@pytest.mark.interpreter
def test_opcheck() -> None:
    from lst_kernels.rms_norm.library import added_and_normed, norm_backward, normed

    x, weight = torch.randn(5, 8), torch.rand(8)
    torch.library.opcheck(normed, (x, weight, 1e-5))
    torch.library.opcheck(added_and_normed, (x, x.clone(), weight, 1e-5))
    for beside in (None, torch.randn(5, 8)):
        torch.library.opcheck(norm_backward, (x.clone(), beside, x, weight, torch.rand(5)))
