"""swiglu against its formula in float64: outputs and gradients."""

import pytest
import torch
from torch import Tensor

from lst_kernels import swiglu
from tests.kernels.test_patch_pool import HALVES, compare


def formula(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("shape", [(5, 8), (3, 1, 6), (2,)])
def test_reference(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(swiglu(x), formula(x))
    assert torch.autograd.gradcheck(swiglu, x)


@pytest.mark.parametrize(
    ("x", "message"), [(torch.zeros(3, 5), r"x must be \[\.\.\., 2 F\]"), (torch.zeros(4).int(), "dtype")]
)
def test_bad_input(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swiglu(x)


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(5, 4), (70, 192), (3, 1), (9, 130), (2, 1024)])
def test_triton(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = (3 * torch.randn(rows, 1, 2 * width + 2)).to(dtype)[..., : 2 * width].requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    out, want = swiglu(ours, "triton"), formula(theirs)
    compare(out, want, HALVES[dtype])
    grad = torch.randn(rows, 1, 2 * width).to(dtype)[..., ::2]
    (a,), (b,) = torch.autograd.grad(out, ours, grad), torch.autograd.grad(want, theirs, grad.double())
    compare(a, b, HALVES[dtype])
    with pytest.raises(AssertionError):  # the control: gate and up are no equals
        compare(a, torch.cat(b.chunk(2, dim=-1)[::-1], dim=-1), HALVES[dtype])


@pytest.mark.interpreter
def test_large_gates_and_nothing() -> None:
    """A sigmoid that overflows is 0 or 1, not NaN."""
    x = torch.tensor([[-1e4, 1e4, 2.0, 3.0]], requires_grad=True)
    out = swiglu(x, "triton")
    torch.testing.assert_close(out, torch.tensor([[0.0, 3e4]]))
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 3.0, 0.0, 1e4]]))
    empty = torch.zeros(0, 4, requires_grad=True)
    swiglu(empty, "triton").sum().backward()
    assert empty.grad is not None


@pytest.mark.interpreter
def test_opcheck() -> None:
    from lst_kernels.swiglu.library import gated, gated_backward

    torch.library.opcheck(gated, (torch.randn(5, 8, requires_grad=True),))
    torch.library.opcheck(gated_backward, (torch.randn(5, 4), torch.randn(5, 8)))
