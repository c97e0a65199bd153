"""Which implementation serves which operation on which device: asked once here, printed by `lst doctor`."""

from __future__ import annotations

import os

import torch

BACKENDS: dict[str, tuple[str, ...]] = {
    "patch_pool": ("triton", "reference"),
    "patch_unpool": ("triton", "reference"),
    "patch_attention": ("triton", "reference"),
    "interval_attention": ("triton", "reference"),
    "rotary": ("triton", "reference"),
    "packed_attention": ("triton", "reference"),
    "rms_norm": ("triton", "reference"),
    "swiglu": ("triton", "reference"),
    "linear_cross_entropy": ("triton", "reference"),
    "adamw": ("triton", "reference"),
}
"""Backends that exist for each operation, fastest first as far as is known."""


def triton_version() -> str | None:
    """Version of the installed Triton, or None when it does not import."""
    try:
        import triton
    except Exception:  # a broken install is the same as none: the reference serves, and the report says so
        return None
    return str(triton.__version__)


def interpreting() -> bool:
    """True under TRITON_INTERPRET=1, when Triton kernels run on CPU tensors (slowly, for tests)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def choose_backend(op: str, device: torch.device | str, backend: str = "auto", dtype: torch.dtype | None = None) -> str:
    """Name of the implementation that will serve `op` on `device`.

    `backend` is "auto" or an explicit choice.  Raises ValueError when the operation or the backend is
    unknown, or when an explicit choice cannot run on this device: a choice is never replaced silently.
    """
    if op not in BACKENDS:
        raise ValueError(f"unknown operation {op!r}; known: {', '.join(BACKENDS)}")
    kind = torch.device(device).type
    if backend == "auto":
        # Meta tensors have no values to look at: they trace the operators that a GPU would run.
        fit = kind in ("cuda", "meta") and "triton" in BACKENDS[op] and dtype != torch.float64
        return "triton" if fit and triton_version() else "reference"
    if backend not in BACKENDS[op]:
        raise ValueError(f"{op} has no backend {backend!r}; it has: auto, {', '.join(BACKENDS[op])}")
    if backend == "triton":
        if dtype == torch.float64:
            raise ValueError(f"{op}: backend 'triton' has no float64; use 'auto' or 'reference'")
        if triton_version() is None:
            raise ValueError(f"{op}: backend 'triton' was asked for, but triton does not import here")
        if kind != "cuda" and not interpreting():
            raise ValueError(f"{op}: backend 'triton' needs CUDA tensors, got {kind}; use 'auto' or 'reference'")
    return backend


def available_backends() -> list[dict[str, str]]:
    """One row an operation: what serves it on this machine, what else could, and why not.

    Keys: op, device, chosen, choices, note.  Used by `lst doctor`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    version = triton_version()
    rows = []
    for op, choices in BACKENDS.items():
        if version is None:
            note = "triton does not import: pip install triton"
        elif device == "cpu":
            note = f"triton {version} is here, but no GPU to run it on"
        else:
            note = f"triton {version}"
        rows.append(
            {
                "op": op,
                "device": device,
                "chosen": choose_backend(op, device),
                "choices": ", ".join(choices),
                "note": note,
            }
        )
    return rows
