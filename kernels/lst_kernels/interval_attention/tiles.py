"""Tile sizes of interval_attention for each target: what fits its shared memory and registers without
spilling.

Held by `lst_kernels.compile_check` (no spills, shared memory within the limit, tensor-core instructions), which needs
no GPU. Speed decides between tiles that pass, and only a measurement on the target can tell:
`lst_kernels.bench`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """One kernel's blocking: BM queries by BN keys, warps a program, pipeline stages."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """Blocking of the three kernels."""

    forward: Tile
    dq: Tile
    dkdv: Tile


SMALL = Tiles(Tile(16, 16, 1, 1), Tile(16, 16, 1, 1), Tile(16, 16, 1, 1))
"""For tests under the interpreter, where many small tiles exercise every edge."""

# (family, 16-bit?, head dimension rounded up) -> tiles.  Families: sm80 (Ampere, Ada), sm90, sm100, gfx942.
TABLE: dict[tuple[str, bool, int], Tiles] = {
    ("sm80", True, 64): Tiles(Tile(128, 64, 4, 3), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    ("sm80", True, 128): Tiles(Tile(128, 32, 8, 3), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("sm90", True, 64): Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("sm90", True, 128): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("sm100", True, 64): Tiles(Tile(128, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("sm100", True, 128): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("gfx942", True, 64): Tiles(Tile(128, 64, 4, 1), Tile(64, 32, 4, 1), Tile(64, 64, 4, 1)),
    ("gfx942", True, 128): Tiles(Tile(128, 32, 4, 1), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1)),
}
FALLBACK = Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1))
"""float32 and unusual head dimensions: right everywhere, tuned nowhere."""


@functools.cache
def family_of(device: torch.device) -> str:
    """Which row of the table serves this device."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return {8: "sm80", 9: "sm90", 10: "sm100"}.get(properties.major, "sm80" if properties.major > 8 else "old")


def tiles_for(family: str, dtype: torch.dtype, dim: int) -> Tiles:
    """Blocking for a head dimension already rounded up to a power of two."""
    if family == "interpreter":
        return SMALL
    return TABLE.get((family, dtype in (torch.bfloat16, torch.float16), dim), FALLBACK)
