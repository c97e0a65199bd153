"""Which tiles of interval_attention are quickest on this machine's GPU, among those that pass the compile check.

Each kernel's tile is searched alone, the others as in the table. What spills or does not fit is never timed; what is
quickest must agree with float64 before it is taken. The heads are the 1B's, or a setting's that is given.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bench import Clock, NoGpu, gate, milliseconds, require_gpu
from .bench_case import Case, Setting
from .interval_attention.bench import Use, uses
from .interval_attention.tiles import VERSION, Tile, Tiles, family_of, key_of, padded, tiles_for, using

MARGIN = 0.02
"""By how much a tile must be quicker than the table's to be taken: less is noise."""
USES = ("local window", "global causal")
"""What stands for a head dimension: the local layers' and the global ones'."""
PUBLISHED = Setting()
"""The heads of the 1B."""


@dataclass(frozen=True)
class Choice:
    """What was found for one head dimension.

    Attributes:
        key: dtype and padded head dimension (`tiles.key_of`).
        milliseconds: of each kernel's direction (forward; both backward kernels together) with the tile that was taken.
        before: the same with the table's.
    """

    key: str
    tiles: Tiles
    milliseconds: dict[str, float]
    before: dict[str, float]


def grid() -> list[Tile]:
    """Every tile that is tried."""
    return [Tile(*sizes) for sizes in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3))]


def quickest(
    begin: Tiles,
    part: str,
    candidates: Sequence[Tile],
    problem: Callable[[Tiles], str | None],
    clock: Callable[[Tiles], float],
    wrong: Callable[[Tiles], str | None],
    tell: Callable[[str], object] = print,
) -> tuple[Tile, float, float]:
    """The tile to take for one kernel, its milliseconds, and those of the tile in `begin`.

    Args:
        begin: the tiles of today; the other kernels keep theirs.
        part: a field of `Tiles`.
        problem: what the compile check says against tiles; asked before they are timed.
        clock: milliseconds; an exception leaves a tile out.
        wrong: how results differ from the reference; asked of the quickest alone, then of the next.
    """
    before = clock(begin)
    timed: list[tuple[float, Tile]] = []
    for tile in candidates:
        tiles = begin._replace(**{part: tile})
        if tiles == begin:
            continue
        why = problem(tiles)
        if why is None:
            try:
                timed.append((clock(tiles), tile))
                continue
            except Exception as error:  # whatever the driver threw: more shared memory than this card has, say
                why = f"{type(error).__name__}: {str(error)[:100]}"
        tell(f"{part} {tuple(tile)}: left out: {why}")
    for taken, tile in sorted(timed):
        if taken >= before * (1 - MARGIN):
            break
        why = wrong(begin._replace(**{part: tile}))
        if why is None:
            tell(f"{part} {tuple(tile)}: {taken:.3f} ms, where the table's takes {before:.3f} ms")
            return tile, taken, before
        tell(f"{part} {tuple(tile)}: left out: {why}")
    tell(f"{part}: the table's tile stays, {before:.3f} ms")
    return getattr(begin, part), before, before


def compare(
    setting: Setting,
    choices: Sequence[Choice],
    tell: Callable[[str], object] = print,
    clock: Clock = milliseconds,
) -> dict[str, dict[str, float]]:
    """Milliseconds of the global attention's implementations, ours with the tiles that were chosen. Raises NoGpu."""
    from .rivals import measure

    require_gpu("a comparison of attention's implementations")
    size = setting.global_head_dim
    chosen = next((choice.tiles for choice in choices if choice.key == key_of(setting.dtype, padded(size))), None)
    with using(chosen) if chosen else contextlib.nullcontext():
        return {key_of(setting.dtype, size): measure(setting, tell, clock)}


def compile_problem(tiles: Tiles, target: str, dim: int, setting: Setting = PUBLISHED) -> str | None:
    """What `compile_check` says against these tiles for a target, at the setting's heads of dimension `dim`."""
    from .compile_check import Shape, check

    local, wide = setting.local_heads, (setting.global_heads, setting.global_kv_heads, setting.global_head_dim)
    shape = Shape("these heads", setting.local_dim, local, setting.queries, *wide)
    with using(tiles):
        rows = [row for op in ("interval", "packed") for row in check([shape], [target], f"{op}_attention D={dim} ")]
    # The check does not hold unusual head dimensions to their speed; what is timed here is.
    found = [(row.kernel, row.problems or (["spills"] if row.spilled else [])) for row in rows]
    return "; ".join(dict.fromkeys(f"{kernel}: {text}" for kernel, problems in found for text in problems)) or None


def tune(
    setting: Setting,
    tell: Callable[[str], object] = print,
    clock: Clock = milliseconds,
    names: Sequence[str] = USES,
) -> list[Choice]:
    """Search for this machine's GPU. Raises NoGpu without one, or where the check has no target for it.

    Args:
        names: what is searched, of `USES`. Of two with one padded head dimension, which share a row of the table, the
            last is taken: the global layers compute more than the local ones.
    """
    from .compile_check import TARGETS

    require_gpu("a search for tiles")
    family = family_of(torch.device(setting.device))
    target = family.replace("sm", "sm_")
    if target not in TARGETS:
        raise NoGpu(
            f"a search for tiles needs one of {', '.join(TARGETS)}, and this GPU is {family}; nothing was tried"
        )
    searched = {padded(use.dim): use for use in uses(setting) if use.name in names}
    return [_choose(use, setting, target, tell, clock) for use in searched.values()]


def _choose(use: Use, setting: Setting, target: str, tell: Callable[[str], object], clock: Clock) -> Choice:
    case = _case(use, setting)
    begin = tiles_for(target.replace("_", ""), setting.dtype, padded(use.dim))
    with using(begin):
        gate(case)
    inputs = [t.detach().requires_grad_() for t in case.inputs]
    grad = torch.randn_like(inputs[0])

    def timed(tiles: Tiles, backward: bool) -> float:
        with using(tiles):
            if backward:
                return clock(lambda out: torch.autograd.grad(out, inputs, grad), lambda: case.run(*inputs))
            with torch.no_grad():
                return clock(lambda _: case.run(*inputs))

    def wrong(tiles: Tiles) -> str | None:
        try:
            with using(tiles):
                gate(case)
        except AssertionError as error:
            return str(error)
        return None

    tell(f"{use.name}, D={use.dim}")
    found, before, tiles = {}, {}, {}
    for part in Tiles._fields:
        tiles[part], found[part], before[part] = quickest(
            begin,
            part,
            grid(),
            lambda tried: compile_problem(tried, target, use.dim, setting),
            lambda tried, back=part != "forward": timed(tried, back),  # type: ignore[misc]
            wrong,
            tell,
        )
    return Choice(key_of(setting.dtype, padded(use.dim)), Tiles(**tiles), found, before)


def _case(use: Use, setting: Setting) -> Case:
    from . import interval_attention

    def run(q: Tensor, k: Tensor, v: Tensor, backend: str = "triton") -> Tensor:
        return interval_attention(q, k, v, use.k_start, use.k_end, backend=backend)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(q, k, v, "reference")

    inputs = [setting.randn(len(use.k_start), use.heads, use.dim)]
    inputs += [setting.randn(use.keys, use.kv_heads, use.dim) for _ in range(2)]
    return Case("interval_attention", use.name, "triton", run, reference, inputs, 0.0, 0.0, "flops")


def table(
    choices: Sequence[Choice],
    device: str,
    triton: str,
    before: str | None = None,
    attention: dict[str, dict[str, float]] | None = None,
) -> str:
    """The file's text (`tiles.VERSION`). Other devices of `before` are kept; so are this device's rows of other keys,
    unless another Triton measured them.

    attention: milliseconds of the global attention's implementations, by key and label (`rivals.measure`).

    Raises ValueError where `before` is of another version.
    """
    whole: dict[str, Any] = json.loads(before) if before else {"version": VERSION, "devices": {}}
    if whole.get("version") != VERSION:
        raise ValueError(f"version {whole.get('version')}, where this release writes {VERSION}")
    rows = {c.key: {**_lists(c.tiles), "milliseconds": c.milliseconds, "table_milliseconds": c.before} for c in choices}
    entry = whole["devices"].get(device, {})
    kept = entry if entry.get("triton") == triton else {}
    whole["devices"][device] = {
        "triton": triton,
        "tiles": {**kept.get("tiles", {}), **rows},
        "attention": {**kept.get("attention", {}), **(attention or {})},
    }
    return json.dumps(whole, indent=1, sort_keys=True) + "\n"


def _lists(tiles: Tiles) -> dict[str, list[int]]:
    return {part: list(tile) for part, tile in tiles._asdict().items()}
