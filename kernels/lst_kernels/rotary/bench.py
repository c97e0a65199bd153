"""rotary beside the same in PyTorch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    """Queries of the global transformer. Bytes counted: values read and written, tables read."""
    from .. import rotary

    units, size = setting.rows * setting.units_per_row, setting.global_head_dim
    x = setting.randn(units, setting.global_heads, size)
    angle = torch.rand(units, size // 2, device=x.device) * 6.28
    cos, sin = angle.cos(), angle.sin()
    moved = 2 * x.numel() * x.element_size() + 2 * cos.numel() * cos.element_size()

    def by(backend: str) -> Callable[[Tensor], Tensor]:
        return lambda x: rotary(x, cos, sin, backend)

    ways = {"triton": by("triton"), "eager": by("reference"), "compiled": torch.compile(by("reference"))}
    for name, way in ways.items():
        yield Case("rotary", f"D={size}", name, way, by("reference"), [x], moved, moved, "bytes")
