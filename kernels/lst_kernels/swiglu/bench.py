"""swiglu beside the same in PyTorch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    """The global transformer's. Bytes counted: values read and written, three a pair forward and five backward."""
    from .. import swiglu

    x = setting.randn(setting.rows * setting.units_per_row, 2 * setting.global_ffn)
    pair = x.numel() // 2 * x.element_size()

    def by(backend: str) -> Callable[[Tensor], Tensor]:
        return lambda x: swiglu(x, backend)

    ways = {"triton": by("triton"), "eager": by("reference"), "compiled": torch.compile(by("reference"))}
    for name, way in ways.items():
        case = f"F={setting.global_ffn}"
        yield Case("swiglu", case, name, way, by("reference"), [x], 3 * pair, 5 * pair, "bytes")
