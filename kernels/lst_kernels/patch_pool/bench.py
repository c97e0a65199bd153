"""patch_pool beside scatter_reduce and segment_reduce; patch_unpool beside indexing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..bench_case import Case, Setting


def _peers(mode: str, start: Tensor, end: Tensor, d: int) -> dict[str, Callable[[Tensor], Tensor]]:
    from .. import patch_pool

    lengths = (end - start).long()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=start.device), lengths)
    spread = owner[:, None].expand(-1, d)

    def scatter(x: Tensor) -> Tensor:
        out = x.new_zeros(len(lengths), d)
        return out.scatter_reduce(0, spread, x, "amax" if mode == "max" else mode, include_self=False)

    return {
        "triton": lambda x: patch_pool(x, start, end, mode, "triton"),
        "scatter_reduce": scatter,
        "segment_reduce": lambda x: torch.segment_reduce(x, mode, lengths=lengths, axis=0, unsafe=True),
    }


def cases(setting: Setting) -> Iterator[Case]:
    """Bytes counted: what must be moved (tokens, patches, the winners of max), whoever does it."""
    from .. import patch_pool, patch_unpool

    start, end, tokens = setting.patches()
    units, d = len(start), setting.local_dim
    x, patches = setting.randn(tokens, d), setting.randn(units, d)
    width = x.element_size()
    for mode in ("max", "mean"):
        moved = (tokens + units) * d * width + (2 * units * d if mode == "max" else 0)

        def reference(x: Tensor, mode: str = mode) -> Tensor:
            return patch_pool(x, start, end, mode, "reference")

        for name, run in _peers(mode, start, end, d).items():
            yield Case("patch_pool", mode, name, run, reference, [x], moved, moved, "bytes")
    owner = torch.searchsorted(start, torch.arange(tokens, device=x.device, dtype=torch.int32), right=True) - 1
    index = owner.int()

    def unpool(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda p, b: patch_unpool(p, index, b, backend)

    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "triton": unpool("triton"),
        "indexing": lambda p, b: b + p[owner],
    }
    moved, back = (2 * tokens + units) * d * width, (tokens + units) * d * width
    for name, way in ways.items():
        yield Case("patch_unpool", "add", name, way, unpool("reference"), [patches, x], moved, back, "bytes")
