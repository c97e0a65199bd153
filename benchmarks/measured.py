"""What every benchmark writes down beside its figures: machine, versions, date and commit."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megatron_lst.files import write_text
from megatron_lst.gpu import gpu_is_usable


def on_gpu() -> bool:
    """Whether there is a GPU. Raises UserError where one is there and cannot be used: its CPU is not measured then."""
    return gpu_is_usable()


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    versions = {}
    for name in ("torch", "triton", "megatron-core", "transformer-engine", "apex", "flash-attn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": torch.cuda.get_device_name() if on_gpu() else f"CPU, {os.cpu_count()} cores",
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD") or None,
        "changed_since_commit": bool(git("status", "--porcelain", "-uno")),
    }


def git(*arguments: str) -> str:
    """What git says; nothing where it is not installed, or this is no checkout."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def write_result(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write `result` with where it was measured as NAME-DEVICE-TIME.json. Without a GPU it is marked as tiny.

    Returns:
        The file, whose name was printed.
    """
    where = machine()
    folder.mkdir(parents=True, exist_ok=True)
    device = "".join(c if c.isalnum() else "-" for c in where["device"].lower()) if on_gpu() else "cpu-tiny"
    file = folder / f"{name}-{device}-{where['date'][:19].replace(':', '')}.json"
    write_text(file, json.dumps({**result, "tiny": not on_gpu(), "machine": where}, indent=1, default=str) + "\n")
    print(f"  {file}")
    return file
