"""rotary against a loop over complex numbers in float64: outputs and gradients."""

import cmath

import pytest
import torch
from torch import Tensor

from lst_kernels import rotary
from tests.kernels.test_patch_pool import HALVES, compare


def tables(tokens: int, half: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * 10000.0 ** -(torch.arange(half) / half)
    return angle.cos().float(), angle.sin().float()


def loop(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pair (i, i + D/2) as one complex number, turned."""
    tokens, heads, size = x.shape
    out = torch.zeros_like(x)
    for n in range(tokens):
        for h in range(heads):
            for i in range(size // 2):
                turned = complex(x[n, h, i], x[n, h, i + size // 2]) * complex(cos[n, i], sin[n, i])
                out[n, h, i], out[n, h, i + size // 2] = turned.real, turned.imag
    return out


def strided(tokens: int, heads: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Queries as they come: a view of one projection of queries, keys and values."""
    return torch.randn(tokens, heads, 3 * size).to(dtype)[..., :size]


@pytest.mark.parametrize("shape", [(5, 3, 8), (1, 1, 2), (7, 2, 6)])
def test_turns_by_the_angle_and_back(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = strided(*shape).requires_grad_()
    cos, sin = (t.double() for t in tables(shape[0], shape[2] // 2))
    out = rotary(x, cos, sin)
    torch.testing.assert_close(out, loop(x.detach(), cos, sin))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(found, loop(grad, cos, -sin))


def test_scores_depend_on_the_distance_alone() -> None:
    """The property that it is there for; without the turn they do not depend on it at all."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 16).expand(40, 1, 16), torch.randn(1, 1, 16).expand(40, 1, 16)
    cos, sin = tables(40, 8)
    a, b = rotary(q, cos, sin)[:, 0], rotary(k, cos, sin)[:, 0]
    scores = a @ b.T
    torch.testing.assert_close(scores[10, 3], scores[37, 30], rtol=1e-4, atol=1e-5)
    assert abs(scores[10, 3] - scores[10, 4]) > 1e-2
    assert cmath.isclose(complex(scores[5, 5]), complex(q[0, 0] @ k[0, 0]), rel_tol=1e-4)


@pytest.mark.parametrize(
    ("x", "cos", "message"),
    [
        (torch.zeros(3, 2, 5), torch.zeros(3, 2), "D even"),
        (torch.zeros(3, 2, 4), torch.zeros(3, 4), r"cos and sin must be \[3, 2\]"),
        (torch.zeros(3, 4), torch.zeros(3, 2), "x must be"),
        (torch.zeros(3, 2, 4, dtype=torch.int32), torch.zeros(3, 2), "dtype"),
        (torch.zeros(3, 2, 4), torch.zeros(3, 2, device="meta"), "must be on cpu"),
    ],
)
def test_bad_input(x: Tensor, cos: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotary(x, cos, cos)


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(70, 3, 8), (3, 2, 128), (5, 1, 6)])
def test_triton(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = strided(*shape, dtype).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    cos, sin = tables(shape[0], shape[2] // 2)
    out, want = rotary(ours, cos, sin, "triton"), rotary(theirs, cos.double(), sin.double())
    compare(out, want, HALVES[dtype])
    grad = torch.randn(*out.shape[:2], 2 * out.shape[2]).to(dtype)[..., ::2]
    (a,), (b,) = torch.autograd.grad(out, ours, grad), torch.autograd.grad(want, theirs, grad.double())
    compare(a, b, HALVES[dtype])


@pytest.mark.interpreter
def test_triton_of_nothing() -> None:
    x = torch.zeros(0, 2, 4, requires_grad=True)
    rotary(x, *tables(0, 2), "triton").sum().backward()
    assert x.grad is not None


@pytest.mark.interpreter
def test_opcheck() -> None:
    from lst_kernels.rotary.library import turn

    torch.library.opcheck(turn, (torch.randn(5, 2, 8, requires_grad=True), *tables(5, 4), False))
