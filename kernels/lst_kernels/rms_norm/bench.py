"""rms_norm with its residual beside the same in PyTorch's operators, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    """Between attention and feed-forward. Bytes counted: values read and written, four a value each way."""
    from .. import rms_norm_residual

    d = setting.global_heads * setting.global_head_dim
    shape = (setting.rows * setting.units_per_row, d)
    inputs = [setting.randn(*shape), setting.randn(*shape), setting.randn(d)]
    moved = 4 * inputs[0].numel() * inputs[0].element_size()

    def by(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def both(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
            return torch.stack(rms_norm_residual(x, weight, residual, backend=backend))

        return both

    ways = {"triton": by("triton"), "eager": by("reference"), "compiled": torch.compile(by("reference"))}
    for name, way in ways.items():
        yield Case("rms_norm", f"d={d}", name, way, by("reference"), inputs, moved, moved, "bytes")
