"""Libraries that may serve attention over causal documents in place of this project's kernel.

`flash_attn` is Dao-AILab's package, `varlen_attn` what PyTorch has from 2.10 on. Both need a CUDA device and float16 or
bfloat16, and are called so that results repeat bit by bit. Timing (`rivals`) and the model call the same function.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Run = Callable[..., Tensor]


class Library(NamedTuple):
    """The symbol that is called, and the distribution whose version it has."""

    module: str
    symbol: str
    distribution: str


LIBRARIES = {
    "flash_attn": Library("flash_attn", "flash_attn_varlen_func", "flash_attn"),
    "varlen_attn": Library("torch.nn.attention.varlen", "varlen_attn", "torch"),
}
DTYPES = (torch.bfloat16, torch.float16)
"""What they compute in."""


def symbol(name: str) -> Run:
    """The library's function. Raises what its import raises; a broken build fails in many ways."""
    library = LIBRARIES[name]
    found: Run = getattr(importlib.import_module(library.module), library.symbol)
    return found


def label(name: str) -> str:
    """What a table of times calls a library: with its version, so that another one is not taken for it."""
    return f"{name} {importlib.metadata.version(LIBRARIES[name].distribution)}"


def document_attention(name: str, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Causal attention inside each document by the library `name`; the same bits twice, gradients included.

    Args:
        query: [N, H, D], float16 or bfloat16 as key and value are.
        key, value: [N, Hk, D], Hk divides H.
        bounds: int32 [documents + 1], the first position of each document, and N.
        longest: positions of the longest document.

    Returns:
        [N, H, D].
    """
    if name == "flash_attn":
        # Without `deterministic` its backward pass adds in another order each time.
        return symbol(name)(query, key, value, bounds, bounds, longest, longest, causal=True, deterministic=True)
    return repeatable(lambda q, k, v: varlen(q, k, v, bounds, longest), query, key, value)


def varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, left: int = -1) -> Tensor:
    """PyTorch's varlen_attn, causal, called as the release that is here wants it. Gradients repeat only under PyTorch's
    deterministic flag. See `document_attention` for the arguments.

    Args:
        left: how many earlier positions one sees besides itself; -1: all of its document.

    Raises:
        ValueError: this release has no windows.
    """
    attend = symbol("varlen_attn")
    known, shared = _parameters(attend), query.shape[1] // key.shape[1]
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (left, 0)
    elif left == -1:
        options["is_causal"] = True  # as 2.10 has it
    else:
        raise ValueError(f"varlen_attn of PyTorch {torch.__version__} has no window_size")
    if "enable_gqa" in known:
        options["enable_gqa"] = shared > 1
    elif shared > 1:  # these releases promise as many key heads as query heads alone
        key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    return attend(query, key, value, bounds, bounds, longest, longest, **options)


@functools.cache
def _parameters(function: Run) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch's deterministic algorithms, an error where there is none; then again what was set before. All threads of
    the process see it meanwhile."""
    flags: Any = torch.utils.deterministic  # a module of properties
    before, filled = torch.get_deterministic_debug_mode(), flags.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")  # under "warn" PyTorch's attention does not repeat
    flags.fill_uninitialized_memory = False  # it writes what is written over, for debugging
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        flags.fill_uninitialized_memory = filled


def repeatable(run: Run, *inputs: Tensor) -> Tensor:
    """run(*inputs), with a backward pass under `deterministic`. The flag is PyTorch's alone and no argument of the
    function, so the pass through the function's own graph is made apart. Under activation recomputation that is not
    reentrant gradients are the same, but `run` is computed once more than need be."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        out: Tensor = _Repeatable.apply(run, *inputs)  # type: ignore[no-untyped-call]
        return out
    return run(*inputs)


class _Repeatable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = run(*leaves)
        ctx.graph = out, leaves
        return out.detach()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.graph is None:
            raise RuntimeError("attention's graph is gone after one backward pass; run the forward pass again")
        (out, leaves), ctx.graph = ctx.graph, None  # its tensors go with it, as those of other operations do
        with deterministic():
            return None, *torch.autograd.grad(out, leaves, grad)
