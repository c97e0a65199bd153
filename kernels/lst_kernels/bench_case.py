"""What is measured: the inputs that all operations share, and one thing to time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """What is measured: a micro-batch's packed axes and the published 1B widths."""

    rows: int = 4
    units_per_row: int = 4096
    document_tokens: int = 1500
    """Length of every document, pinned: shorter documents make attention look faster."""
    local_dim: int = 1024
    local_heads: int = 16
    queries: int = 2
    window: int = 512
    global_heads: int = 16
    global_kv_heads: int = 16
    global_head_dim: int = 128
    global_ffn: int = 5632
    vocabulary: int = 32768
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"

    def randn(self, *size: int) -> Tensor:
        """Random values in the setting's dtype, on its device."""
        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def patch_lengths(self) -> Tensor:
        """int64 [units]: of 242 units 19 are speech patches of 4 tokens (SPEC 10: 0.19 + 0.23 + 2.00)."""
        pattern = torch.ones(242, dtype=torch.long)
        pattern[torch.linspace(0, 241, 19).long()] = 4
        units = self.rows * self.units_per_row
        return pattern.repeat(-(-units // 242))[:units]

    def patches(self) -> tuple[Tensor, Tensor, int]:
        """(start, end, tokens), back to back."""
        lengths = self.patch_lengths()
        end = lengths.cumsum(0)
        return (end - lengths).int().to(self.device), end.int().to(self.device), int(end[-1])

    def causal(self, length: int, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """(k_start, k_end, document starts [n + 1]) of a packed axis of `length`."""
        t = torch.arange(length)
        begin = t // self.document_tokens * self.document_tokens
        if window is not None:
            begin = torch.maximum(begin, t - window + 1)
        starts = torch.arange(0, length + self.document_tokens, self.document_tokens).clamp(max=length)
        starts = torch.unique(starts)
        return begin.int().to(self.device), (t + 1).int().to(self.device), starts.int().to(self.device)


@dataclass
class Case:
    """One thing to time: `work` is bytes moved or floating-point operations of a forward pass."""

    op: str
    case: str
    backend: str
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: list[Tensor]
    work: float
    backward_work: float
    kind: str  # "bytes" or "flops"
    differentiable: bool = True
    """False: there is no backward pass, and inputs may be written into."""
