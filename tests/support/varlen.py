"""PyTorch's varlen_attn on a CPU, where the real one does not run: this project's reference behind its signature."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lst_kernels import interval_attention

FLAGS: Any = torch.utils.deterministic  # a module of properties
State = tuple[int, bool]
"""PyTorch's deterministic mode (0 off, 1 warn, 2 error), and whether it fills new memory."""


def state() -> State:
    return torch.get_deterministic_debug_mode(), FLAGS.fill_uninitialized_memory


@contextmanager
def set_to(mode: int, fill: bool) -> Iterator[None]:
    before = state()
    torch.set_deterministic_debug_mode(mode)
    FLAGS.fill_uninitialized_memory = fill
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        FLAGS.fill_uninitialized_memory = before[1]


class _Witness(torch.autograd.Function):
    """Does nothing, and notes the state of each backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[State]) -> Tensor:
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.seen.append(state())
        return grad, None


class StandIn:
    """Notes the state of PyTorch's flags in each pass."""

    def __init__(self) -> None:
        self.forward: list[State] = []
        self.backward: list[State] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
        """Causal attention of documents."""
        assert bounds.dtype == torch.int32
        assert longest >= int(bounds.diff().max())
        self.forward.append(state())
        place = torch.arange(len(query), dtype=torch.int32)
        start = bounds[torch.searchsorted(bounds, place, right=True) - 1]
        out = interval_attention(query, key, value, start, place + 1, backend="reference")
        return _Witness.apply(out, self.backward)  # type: ignore[no-any-return,no-untyped-call]

    def torch_2_13(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert enable_gqa == (query.shape[1] != key.shape[1])
        return self.torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window_size, _any=True)

    def torch_2_11(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int] = (-1, -1),
        _any: bool = False,
    ) -> Tensor:
        assert window_size == (-1, 0), "causal"
        return self.torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, True, _any)

    def torch_2_10(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
        _any: bool = False,
    ) -> Tensor:
        assert is_causal
        assert _any or query.shape[1] == key.shape[1], "as many key heads as query heads"
        assert cu_seq_q is cu_seq_k
        assert max_q == max_k
        return self.attend(query, key, value, cu_seq_q, max_q)


def stand_in(patch: pytest.MonkeyPatch, release: str = "torch_2_13") -> StandIn:
    """In the place of varlen_attn from now on."""
    from torch.nn.attention import varlen

    found = StandIn()
    patch.setattr(varlen, "varlen_attn", getattr(found, release))
    return found
