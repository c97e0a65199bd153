"""Optional accelerators, each probed once, lazily, by the exact symbol that is used. Everything works without them.

`auto` takes what has been shown to be right and to repeat bit by bit; what has never run in this project is used when
it is asked for by name.

PyPI's `apex` is another project and its `transformer-engine` a stub: only the symbol tells what is there.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from lst_kernels.adamw.library import works_on
from lst_kernels.interval_attention.tiles import FILE, attention_on, key_of
from lst_kernels.libraries import LIBRARIES, label
from megatron_lst.errors import UserError
from megatron_lst.gpu import gpu_is_usable
from megatron_lst.parallel import cpu


class Accelerator(NamedTuple):
    """One line of `lst doctor`: name, version (None: not here), what it serves, how to get it."""

    name: str
    version: str | None
    serves: str
    how_to_get: str


_SYMBOLS = {
    ("optimizer", "transformer_engine"): ("transformer_engine.pytorch.optimizers", "FusedAdam"),
    ("optimizer", "apex"): ("apex.optimizers", "FusedAdam"),
    ("norm", "transformer_engine"): ("transformer_engine.pytorch", "RMSNorm"),
    ("norm", "apex"): ("apex.normalization", "FusedRMSNorm"),
    **{("attention", name): (library.module, library.symbol) for name, library in LIBRARIES.items()},
    ("fp8", "transformer_engine"): ("transformer_engine.pytorch.fp8", "FP8GlobalStateManager"),
}
_CHOICES = {
    "optimizer": ("torch", "lst_kernels", "transformer_engine", "apex"),
    "norm": ("torch", "transformer_engine", "apex"),
    "attention": ("lst_kernels", *LIBRARIES),
}
PROVED = {"optimizer": "torch", "norm": "torch", "attention": "lst_kernels"}
"""What `auto` takes. Another one enters with its first green `make gpu` (engine-tests with engine.PURPOSE=NAME). AdamW
by `lst_kernels` is asked each device instead: `auto` takes it where small updates agree with PyTorch's there."""
_FP8_RECIPES = {  # what Transformer Engine's FP8GlobalStateManager is asked of the device
    "tensorwise": "is_fp8_available",
    "blockwise": "is_fp8_block_scaling_available",
    "mxfp8": "is_mxfp8_available",
}
_DISTRIBUTIONS = {
    "transformer_engine": "transformer_engine",
    "apex": "apex",
    **{name: library.distribution for name, library in LIBRARIES.items()},
}
_HOW = {
    "transformer_engine": "NVIDIA's PyTorch images (NGC), or build transformer-engine[pytorch] from source",
    "apex": "NVIDIA's PyTorch images (NGC), or build github.com/NVIDIA/apex (PyPI's apex is another project)",
    "flash_attn": "pip install flash-attn --no-build-isolation, on a machine with CUDA",
    "varlen_attn": "part of PyTorch 2.10 and later, on a machine with CUDA",
}


@functools.cache
def probe(purpose: str, name: str) -> Any | None:
    """The symbol that serves `purpose` ("optimizer", "norm", "attention", "fp8"); None where it does not import."""
    if not gpu_is_usable():
        return None
    module, symbol = _SYMBOLS[purpose, name]
    try:
        return getattr(importlib.import_module(module), symbol)
    except Exception:  # a broken build fails in many ways; whatever the way, it cannot be used
        return None


def choose(purpose: str, wanted: str) -> str:
    """The implementation to use.

    Args:
        purpose: "optimizer", "norm" or "attention".
        wanted: "auto", or a name.

    Raises:
        UserError: an explicit choice that is unknown or missing.
    """
    names = _CHOICES[purpose]
    if wanted == "auto":
        return "lst_kernels" if purpose == "optimizer" and _update_works() else PROVED[purpose]
    if wanted not in names:
        raise UserError(f"engine.{purpose}={wanted}: unknown; one of auto, {', '.join(names)}")
    if (purpose, wanted) == ("optimizer", "lst_kernels"):
        if not cpu.on_cpu() and not _update_works():
            raise UserError(
                "engine.optimizer=lst_kernels: Triton is missing, or its update differs from PyTorch's on this device; "
                "use engine.optimizer=auto or torch"
            )
        return wanted
    if wanted != PROVED[purpose] and probe(purpose, wanted) is None:
        module, symbol = _SYMBOLS[purpose, wanted]
        raise UserError(
            f"engine.{purpose}={wanted}: {module}.{symbol} cannot be imported here, or there is no CUDA device. "
            f"Get it: {_HOW[wanted]}; or use engine.{purpose}=auto"
        )
    return wanted


def choose_attention(wanted: str, dtype: torch.dtype, head_size: int) -> tuple[str, str]:
    """The global attention to use, and why.

    `auto` takes the quickest of this device's measured table (`lst kernels tune`, named by LST_KERNELS_TILES), whose
    entries have passed a check and repeat bit by bit; without a table what is proved.

    Raises:
        UserError: as `choose`; the table that is named cannot be read.
    """
    if wanted != "auto":
        return choose("attention", wanted), "asked for"
    return _quickest(_measured().get(key_of(dtype, head_size), {}))


def attention_here() -> dict[str, tuple[str, str]]:
    """What `engine.attention=auto` takes on this machine, and why, by dtype and head size.

    A row for each that the measured table knows; "else" stands for all others.

    Raises:
        UserError: as `choose_attention`.
    """
    return {**{key: _quickest(row) for key, row in _measured().items()}, "else": _quickest({})}


def _measured() -> dict[str, dict[str, float]]:
    try:
        return {} if cpu.on_cpu() else attention_on(cpu.device())
    except ValueError as error:
        raise UserError(str(error)) from None


def _quickest(measured: Mapping[str, float]) -> tuple[str, str]:
    """The first of these, quickest first, that is here in the version that was measured."""
    for name, ms in measured.items():
        kind = name.partition(" ")[0]
        if kind == PROVED["attention"] or (kind in LIBRARIES and probe("attention", kind) and name == label(kind)):
            return kind, f"quickest measured here, {ms:.3g} ms; {FILE}"
    return PROVED["attention"], "proved; not measured here for such heads"


def _update_works() -> bool:
    """Whether this process's GPU updates by `lst_kernels` as PyTorch does. On a CPU False: PyTorch's own is faster."""
    return not cpu.on_cpu() and works_on(cpu.device())


def fp8_recipe(fp8: str, wanted: str, manager: Any = None) -> str | None:
    """The recipe of fp8 training on this device; None where nothing trains in fp8.

    Args:
        fp8: `engine.fp8`.
        wanted: `engine.fp8_recipe`.
        manager: Transformer Engine's, which knows the device; None: it is looked for.

    Raises:
        UserError: Transformer Engine is missing or too old, or has no such recipe on this device.
    """
    if fp8 == "none":
        return None
    manager = manager or probe("fp8", "transformer_engine")
    if not all(hasattr(manager, query) for query in _FP8_RECIPES.values()):
        raise UserError(
            f"engine.fp8={fp8}: Transformer Engine 2.3 or later cannot be imported here, or there is no CUDA device. "
            f"Get it: {_HOW['transformer_engine']}; or use engine.fp8=none"
        )
    if wanted == "auto":
        wanted = "mxfp8" if manager.is_mxfp8_available()[0] else "tensorwise"
    here, reason = getattr(manager, _FP8_RECIPES[wanted])()
    if not here:
        raise UserError(f"engine.fp8={fp8}: no {wanted} recipe here ({reason}); use another engine.fp8_recipe or none")
    return wanted


def report() -> list[Accelerator]:
    """What is here and what is not, for people."""
    lines = []
    for name, how in _HOW.items():
        purposes = [p for (p, n) in _SYMBOLS if n == name]
        found = [p for p in purposes if probe(p, name) is not None]
        version = None
        if found:
            try:
                version = importlib.metadata.version(_DISTRIBUTIONS[name])
            except importlib.metadata.PackageNotFoundError:
                version = "unknown"
        lines.append(Accelerator(name, version, ", ".join(purposes), how))
    return lines
