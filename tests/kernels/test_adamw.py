"""adamw beside torch.optim.AdamW over several updates: kernel and reference, their copies and what they refuse."""

import pytest
import torch
from torch import Tensor

from lst_kernels import adamw

SIZES = (1, 7, 2048, 40_000, 32_768 + 2048 + 5)
OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1}


def run(backend: str, copies: torch.dtype | None, offset: int = 0, steps: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and copies after some updates by gradients 3 times too large. offset: values by which tensors begin
    beside a 16-byte boundary."""
    torch.manual_seed(0)

    def apart(value: Tensor) -> Tensor:
        whole = torch.empty(value.numel() + offset, dtype=value.dtype)
        return whole[offset:].copy_(value)

    values = [torch.randn(n) for n in SIZES]
    params = [apart(v) for v in values]
    first, second = ([apart(torch.zeros_like(v)) for v in values] for _ in range(2))
    rounded = [apart(torch.zeros(n, dtype=copies)) for n in SIZES] if copies else []
    for step in range(1, steps + 1):
        grads = [apart(torch.randn(n) * 10 ** (step - 3) * 3) for n in SIZES]
        divisor = torch.full((1,), 3.0)
        adamw(params, grads, first, second, rounded, divisor, step=step, backend=backend, **OPTIONS)  # type: ignore[arg-type]
    return params, rounded


def torchs(steps: int = 6, decay: float = 0.1) -> list[Tensor]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n)) for n in SIZES]
    peer = torch.optim.AdamW(params, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    for step in range(1, steps + 1):
        for p in params:
            p.grad = torch.randn(p.numel()) * 10 ** (step - 3)
        peer.step()
    return [p.detach() for p in params]


def check(backend: str, copies: torch.dtype | None, offset: int) -> None:
    params, rounded = run(backend, copies, offset)
    for ours, theirs in zip(params, torchs(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for ours, copy in zip(params, rounded, strict=False):
        if copy.dtype == torch.bfloat16 and backend == "triton":  # the interpreter cuts off where a GPU rounds
            torch.testing.assert_close(copy.float(), ours, rtol=2**-7, atol=0)
        else:
            assert torch.equal(ours.to(copy.dtype), copy)
    assert len(rounded) == (len(SIZES) if copies else 0)
    other = torchs(decay=0.0)
    assert (params[-1] - other[-1]).abs().max() > 1e-4, "the control: without decay it is another update"


@pytest.mark.parametrize("copies", [None, torch.bfloat16], ids=str)
def test_reference(copies: torch.dtype | None) -> None:
    check("reference", copies, 0)


@pytest.mark.interpreter
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "apart"])
@pytest.mark.parametrize("copies", [None, torch.bfloat16, torch.float16], ids=str)
def test_triton(copies: torch.dtype | None, offset: int) -> None:
    check("triton", copies, offset)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("by", [float("nan"), float("inf")])
def test_nothing_changes_by_what_is_not_finite(backend: str, by: float) -> None:
    tensors = [[torch.randn(3000)] for _ in range(4)] + [[torch.randn(3000).bfloat16()]]
    before = [t.clone() for (t,) in tensors]
    adamw(*tensors, torch.full((1,), by), step=1, backend=backend, **OPTIONS)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, (b,) in zip(before, tensors, strict=True))
    adamw(*tensors, torch.ones(1), step=1, backend=backend, **OPTIONS)  # type: ignore[arg-type]
    assert not torch.equal(before[0], tensors[0][0]), "the control: a finite divisor does"


@pytest.mark.interpreter
def test_the_question_that_is_asked_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from lst_kernels.adamw import library, triton

    assert library.agrees(torch.device("cpu"))
    right = triton.adamw_launch
    monkeypatch.setattr(triton, "adamw_launch", lambda *a: right(*a[:-1], 0.0))
    assert not library.agrees(torch.device("cpu")), "the control: a kernel that forgets the decay"


def test_where_it_is_not_asked() -> None:
    from lst_kernels.adamw.library import works_on

    assert not works_on(torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": []}, "as many gradients"),
        ({"copies": [torch.zeros(4).half()] * 2}, "as many copies"),
        ({"divisor": torch.ones(1).double()}, "divisor"),
        ({"grads": [torch.zeros(4).bfloat16()]}, "must be float32"),
        ({"first": [torch.zeros(5)]}, "of one size"),
        ({"copies": [torch.zeros(4)]}, "16-bit"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {name: [torch.zeros(4)] for name in ("params", "grads", "first", "second")}
    given |= {"copies": [], "divisor": torch.ones(1), **change}
    with pytest.raises(ValueError, match=message):
        adamw(**given, step=1, **OPTIONS)  # type: ignore[arg-type]
