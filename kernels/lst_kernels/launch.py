"""One door through which every Triton kernel is launched, so that `lst_kernels.compile_check` can compile instead of
run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

Grid = tuple[int, ...]
Recorder = Callable[[Any, Grid, tuple[Any, ...], dict[str, Any]], None]
_recorder: Recorder | None = None
_lanes: int | None = None


@contextlib.contextmanager
def recording(recorder: Recorder, lanes: int) -> Iterator[None]:
    """Within this context kernels go to `recorder(kernel, grid, args, options)` and are not run."""
    global _recorder, _lanes
    before, (_recorder, _lanes) = (_recorder, _lanes), (recorder, lanes)
    try:
        yield
    finally:
        _recorder, _lanes = before


def warps_for(elements: int) -> int:
    """Warps among which `elements` 16-bit values of one load are shared out, eight (128 bits) a thread."""
    lanes = _lanes or (64 if torch.version.hip else 32)
    return max(1, min(8, elements // (8 * lanes)))


def columns(d: int) -> tuple[int, int]:
    """For kernels that take a row of d values in blocks: (block, warps)."""
    block = min(1024, 1 << max(d - 1, 0).bit_length())
    return block, warps_for(block)


def launch(kernel: Any, grid: Grid, *args: Any, **options: Any) -> None:
    """Run `kernel` over `grid` on the device of its first argument; an empty grid runs nothing."""
    if 0 in grid:
        return
    if _recorder is not None:
        _recorder(kernel, grid, args, options)
        return
    device = args[0].device
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[grid](*args, **options)
