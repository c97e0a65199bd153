"""Tile sizes of interval_attention for each target: what fits its shared memory and registers without
spilling.

Held by `lst_kernels.compile_check` (no spills, shared memory within the limit, tensor-core instructions), which needs
no GPU. Speed decides between tiles that pass, and only a measurement on the target can tell: `lst_kernels.tune`
writes what it finds into a file, and launches follow the file that the environment's `LST_KERNELS_TILES` names.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
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
    ("sm80", True, 64): Tiles(Tile(128, 64, 8, 3), Tile(64, 32, 4, 3), Tile(32, 64, 4, 2)),
    ("sm80", True, 128): Tiles(Tile(64, 64, 8, 3), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("sm90", True, 64): Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("sm90", True, 128): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("sm100", True, 64): Tiles(Tile(128, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("sm100", True, 128): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("gfx942", True, 64): Tiles(Tile(128, 64, 4, 1), Tile(64, 32, 4, 1), Tile(64, 64, 4, 1)),
    ("gfx942", True, 128): Tiles(Tile(128, 32, 4, 1), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1)),
}
FALLBACK = Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1))
"""float32 and unusual head dimensions: right everywhere, tuned nowhere."""

FILE = "LST_KERNELS_TILES"
"""Environment variable: a file of measured tiles. Unset: the table above."""
VERSION = 1
"""Of the file: {"version": 1, "devices": {NAME: {"triton": VERSION, "tiles": {"bfloat16 128": {"forward": [BM, BN,
num_warps, num_stages], "dq": ..., "dkdv": ...}}, "attention": {"bfloat16 128": {LABEL: milliseconds}}}}}; attention may
be missing, labels are those of `lst_kernels.rivals`."""
OWN = "lst_kernels"
_given: Tiles | None = None


@contextlib.contextmanager
def using(tiles: Tiles) -> Iterator[None]:
    """Within this context every launch takes these."""
    global _given
    before, _given = _given, tiles
    try:
        yield
    finally:
        _given = before


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
    if _given is not None:
        return _given
    if family == "interpreter":
        return SMALL
    return TABLE.get((family, dtype in (torch.bfloat16, torch.float16), dim), FALLBACK)


def tiles_on(device: torch.device, dtype: torch.dtype, dim: int) -> Tiles:
    """Blocking on a device: measured there, where `LST_KERNELS_TILES` names a file that knows it; else the table's."""
    path = os.environ.get(FILE)
    if _given is None and path and device.type == "cuda":
        from ..backends import triton_version

        measured = read(path, torch.cuda.get_device_name(device), str(triton_version()))
        if found := measured.get(key_of(dtype, dim)):
            return found
    return tiles_for(family_of(device), dtype, dim)


def attention_on(device: torch.device) -> dict[str, dict[str, float]]:
    """Milliseconds of the global attention's implementations on a device, by `key_of` and label, quickest first; empty
    where the file that `LST_KERNELS_TILES` names does not know the device, or nothing is named. Raises ValueError as
    `read` does."""
    path = os.environ.get(FILE)
    if not path or device.type != "cuda":
        return {}
    from ..backends import triton_version

    _, attention = _file(path, torch.cuda.get_device_name(device), str(triton_version()))
    return {key: dict(sorted(row.items(), key=lambda entry: entry[1])) for key, row in attention.items()}


def turns_in_place(dim: int) -> bool:
    """Whether the kernels turn heads of this dimension themselves: between a pair's halves there is no padding."""
    return dim >= 16 and dim & (dim - 1) == 0


def padded(dim: int) -> int:
    """The head dimension that kernels compute with, for which tiles are chosen: 16 is the least of tensor cores."""
    return max(16, 1 << (dim - 1).bit_length())


def key_of(dtype: torch.dtype, dim: int) -> str:
    """A row of the file."""
    return f"{str(dtype).removeprefix('torch.')} {dim}"


def read(path: str, device: str, triton: str) -> dict[str, Tiles]:
    """What a file says of a device's tiles; empty where it says nothing.

    Raises ValueError, naming the file, where it cannot be read, is of another version, or was measured with another
    Triton, which gives the same tiles other registers.
    """
    return _file(path, device, triton)[0]


@functools.cache
def _file(path: str, device: str, triton: str) -> tuple[dict[str, Tiles], dict[str, dict[str, float]]]:
    """Tiles, and milliseconds of attention's implementations."""
    again = "run `lst kernels tune` again, or unset " + FILE
    try:
        text = json.loads(Path(path).read_text(encoding="utf-8"))
        if text["version"] != VERSION:
            raise ValueError(f"version {text['version']}, where this release reads {VERSION}")
        entry = text["devices"].get(device)
        if entry is None:
            return {}, {}
        if entry["triton"] != triton:
            raise ValueError(f"{device} was measured with Triton {entry['triton']}, and this is {triton}")
        rows = entry["tiles"].items()
        tiles = {key: Tiles(*(Tile(*map(int, row[part])) for part in Tiles._fields)) for key, row in rows}
        rivals = entry.get("attention", {}).items()
        return tiles, {key: {name: float(ms) for name, ms in row.items()} for key, row in rivals}
    except OSError as error:
        raise ValueError(f"{FILE}={path}: {error.strerror}; {again}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FILE}={path}: {error}; {again}") from None
