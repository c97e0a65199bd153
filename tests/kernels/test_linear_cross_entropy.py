"""linear_cross_entropy against PyTorch's own, in float64: losses and gradients, and the memory that it
promises."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from lst_kernels import add_product, linear_cross_entropy
from tests.kernels.test_patch_pool import HALVES, compare

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("chunk", [4, 10, 100])
def test_equals_torch(chunk: int, ahead: bool, reduction: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8).to(dtype), torch.randn(31, 8).to(dtype)
    labels = torch.randint(0, 31, (23,))
    labels[::5] = -100
    ours = [t.clone().requires_grad_() for t in (hidden, weight)]
    theirs = [t.double().requires_grad_() for t in (hidden, weight)]
    out = linear_cross_entropy(*ours, labels, reduction, chunk, ahead=ahead)
    want = cross_entropy(theirs[0] @ theirs[1].t(), labels, reduction=reduction)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    grad = torch.rand(out.shape, dtype=torch.float64)
    got = torch.autograd.grad(out, ours, grad.to(out.dtype))
    expected = torch.autograd.grad(want, theirs, grad)
    for a, b in zip((out, *got), (want, *expected), strict=True):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
def test_ahead(backend: str) -> None:
    """The sum's gradients are the same bits as those that are computed later, and logits are made once for them."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    labels = torch.randint(0, 31, (23,))
    labels[::5] = -100

    def products(ahead: bool, differentiated: Callable[[Tensor], Tensor]) -> tuple[int, list[Tensor]]:
        with FlopCounterMode(display=False) as counter:
            out = linear_cross_entropy(hidden, weight, labels, chunk=10, backend=backend, ahead=ahead)
            found = torch.autograd.grad(differentiated(out), [hidden, weight])
        return counter.get_total_flops() // (2 * 23 * 31 * 8), list(found)

    (once, early), (twice, late) = products(True, lambda x: 3 * x.sum()), products(False, lambda x: 3 * x.sum())
    assert (once, twice) == (3, 4)
    for a, b in zip(early, late, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    weights = torch.rand(23)
    (again, early), (_, late) = (products(ahead, lambda x: (x * weights).sum()) for ahead in (True, False))
    assert again == 6, "the control: not one number for all rows, so nothing that was found ahead is used"
    assert all(map(torch.equal, early, late))


def test_everything_ignored() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.full((5,), -100), "sum")
    loss.backward()
    assert loss == 0
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


def test_frozen_weight() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
    linear_cross_entropy(hidden, weight, torch.arange(5), "sum").backward()
    assert hidden.grad.abs().max() > 0


@pytest.mark.parametrize("ahead", [False, True])
def test_logits_never_live_whole(ahead: bool) -> None:
    """No tensor of the size of all logits is ever made."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, weight = torch.randn(200, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    with Watch():
        labels = torch.zeros(200, dtype=torch.long)
        linear_cross_entropy(hidden, weight, labels, "sum", chunk=20, ahead=ahead).backward()
    assert 0 < largest <= 20 * 50


def test_bad_input() -> None:
    h, w, labels = torch.randn(5, 4), torch.randn(7, 4), torch.arange(5)
    for message, arguments in (
        ("differ in d", (h, w[:, :3], labels)),
        ("must be", (h[0], w, labels)),
        ("labels must be \\[N\\]", (h, w, labels[:4])),
        ("integers", (h, w, labels.float())),
        ("outside the vocabulary", (h, w, labels + 3)),
        ("reduction", (h, w, labels, "mean")),
        ("dtypes must agree", (h, w.half(), labels)),
    ):
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(*arguments)


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("tokens", "vocabulary", "chunk"), [(23, 31, 10), (5, 4100, 3), (3, 1, 8)])
def test_triton(tokens: int, vocabulary: int, chunk: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(tokens, 8).to(dtype), torch.randn(vocabulary, 8).to(dtype)]
    labels = torch.randint(0, vocabulary, (tokens,))
    labels[::5] = -100
    ours, theirs = ([t.detach().to(d).requires_grad_() for t in inputs] for d in (dtype, torch.float64))
    grad = torch.rand(tokens)
    out = linear_cross_entropy(*ours, labels, chunk=chunk, backend="triton")
    want = cross_entropy(theirs[0] @ theirs[1].t(), labels, reduction="none")
    compare(out, want, HALVES[dtype])
    got = torch.autograd.grad(out, ours, grad)
    expected = torch.autograd.grad(want, theirs, grad.double())
    for a, b in zip(got, expected, strict=True):
        compare(a, b, 4 * HALVES[dtype])
    labels[1] = (labels[1].clamp(min=0) + 1) % vocabulary
    other = linear_cross_entropy(*ours, labels, chunk=chunk, backend="triton")
    assert vocabulary == 1 or not torch.equal(out[1], other[1]), "the control: a target counts"


@pytest.mark.interpreter
def test_statistics_of_a_shard_and_of_infinities() -> None:
    """Columns outside give 0, rows that hold -inf and large values neither NaN nor infinity."""
    from lst_kernels.linear_cross_entropy.library import ahead, gradient, statistics

    logits = torch.tensor([[1e4, -float("inf"), 3.0], [-1e4, -1e4, -1e4]])
    normaliser, target = statistics(logits, torch.tensor([-2, 7]))
    torch.testing.assert_close(normaliser, logits.double().logsumexp(-1).float())
    assert not target.any()
    torch.library.opcheck(statistics, (logits, torch.tensor([0, 2])))
    torch.library.opcheck(gradient, (logits.clone(), normaliser, torch.tensor([0, 2]), torch.ones(2)))
    written = (torch.empty(2), torch.empty(2))
    torch.library.opcheck(ahead, (logits.clone(), torch.tensor([0, 2]), torch.ones(2), *written))


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 31, 4096, 9001])
def test_statistics_and_gradient_in_one_kernel(vocabulary: int, dtype: torch.dtype) -> None:
    """The bits of the two kernels and the values of float64, with large logits, some of -inf, and ignored rows."""
    from lst_kernels.linear_cross_entropy.library import ahead, gradient, statistics

    torch.manual_seed(0)
    logits = torch.randn(6, vocabulary)
    logits[1] *= 1e4
    logits[2, ::3] = -float("inf") if vocabulary > 1 else 0
    logits = logits.to(dtype)
    column, counted = torch.randint(0, vocabulary, (6,)), torch.tensor([1.0, 1, 1, 0, 1, 0])
    column[0], column[2] = vocabulary - 1, min(1, vocabulary - 1)
    together, normaliser, target = logits.clone(), torch.empty(6), torch.empty(6)
    ahead(together, column, counted, normaliser, target)
    apart, found = logits.clone(), statistics(logits, column)
    gradient(apart, found[0], column, counted)
    for a, b in zip((normaliser, target, together), (*found, apart), strict=True):
        assert torch.equal(a, b)

    exact = logits.double().requires_grad_()
    losses = cross_entropy(exact, column, reduction="none") * counted
    (want,) = torch.autograd.grad(losses.sum(), exact)
    torch.testing.assert_close((normaliser - target).double() * counted, losses.detach(), rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(together.double(), want, rtol=HALVES[dtype], atol=HALVES[dtype])
    assert not together[counted == 0].any()
    ahead(other := logits.clone(), column, torch.ones(6), normaliser, target)
    assert vocabulary == 1 or other[counted == 0].any(), "the control: rows that are not ignored have a gradient"
    assert torch.equal(other[counted == 1], together[counted == 1])


@pytest.mark.interpreter
def test_which_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ahead, two where a group (here of this process alone) adds up between, and where gradients come later."""
    from lst_kernels.linear_cross_entropy import library

    asked: list[str] = []

    def watched(name: str) -> Callable[..., object]:
        real = getattr(library, name)
        return lambda *arguments: (asked.append(name), real(*arguments))[1]

    for name in ("ahead", "statistics", "gradient"):
        monkeypatch.setattr(library, name, watched(name))
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    labels = torch.randint(0, 31, (23,))
    labels[::5] = -100

    def run(ahead: bool, group: object) -> tuple[list[str], list[Tensor]]:
        asked.clear()
        out = linear_cross_entropy(hidden, weight, labels, "sum", 12, backend="triton", ahead=ahead, group=group)
        return list(asked), [out, *torch.autograd.grad(out, [hidden, weight])]

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        runs = [run(True, None), run(True, dist.group.WORLD), run(False, None)]
    finally:
        dist.destroy_process_group()
    assert [names for names, _ in runs] == [["ahead"] * 2, ["statistics", "gradient"] * 2, ["statistics"] * 2]
    for _, found in runs[1:]:
        for a, b in zip(found, runs[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_add_product(backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(6, 5).to(dtype).t(), torch.randn(6, 7).to(dtype)
    into = torch.randn(5, 7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    want = into.double() + left.double() @ right.double()
    add_product(into, left, right, backend)
    exact = backend == "fused" or dtype != torch.bfloat16
    assert (into.double() - want).abs().max() < (1e-5 if exact else 3e-2)
    if not exact:
        assert (into.double() - want).abs().max() > 1e-4, "the control: the reference rounds the product first"
    over = torch.full_like(into, float("nan"))
    add_product(over, left, right, backend, first=True)
    assert (over.double() - left.double() @ right.double()).abs().max() < (1e-5 if exact else 3e-2), "not added"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(((2, 3), (2, 4), (5, 3)), "shapes must fit"), (((2, 3), (2, 4), (4,)), "matrices")],
)
def test_add_product_refuses(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_product(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="accumulator"):
        add_product(torch.zeros(2, 3).bfloat16(), torch.zeros(2, 4).bfloat16(), torch.zeros(4, 3).bfloat16())
