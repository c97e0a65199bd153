"""Whether this process computes on CUDA devices. A GPU that is there and cannot be used is an error, never a CPU."""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from megatron_lst.errors import UserError

_DEVICES, _DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")
HIDDEN = "CUDA_VISIBLE_DEVICES"

# CUDA builds of PyTorch, newest first, with the oldest Linux driver that runs them: NVIDIA's "CUDA Compatibility",
# minor version compatibility (12.x: 525, 13.x: 580; 11.8: 450.80).
_BUILDS = ((580, "13.0", "cu130"), (525, "12.6 or 12.8", "cu126, cu128"), (450, "11.8", "cu118"))


@functools.cache
def gpu_is_usable() -> bool:
    """True where torch can use a CUDA device; False where this machine has none, or hides it.

    Raises:
        UserError: an NVIDIA device is there and torch cannot use it: the driver is too old for torch's CUDA, or torch
            is a build for CPUs. CUDA_VISIBLE_DEVICES="" hides the device and asks for the CPU.
    """
    import torch

    if torch.cuda.is_available():
        return True
    if torch.version.hip is None and (why := unusable(torch.__version__, torch.version.cuda)):
        raise UserError(why)
    return False


def unusable(
    torch_version: str,
    torch_cuda: str | None,
    *,
    devices: Path = _DEVICES,
    driver: Path = _DRIVER,
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """Why a GPU of this machine cannot be used, and which build of torch fits; None: there is no GPU, or it is hidden.

    Called where torch sees no CUDA device.

    Args:
        torch_cuda: `torch.version.cuda`; None for a build for CPUs.
        devices: the folder of device files: NVIDIA's driver makes `nvidia0`, `nvidia1`, ... there.
        driver: the file in which the driver says its version.
    """
    if environment.get(HIDDEN, "0").strip() in ("", "-1", "NoDevFiles"):
        return None
    cards = sorted(path.name for path in devices.glob("nvidia[0-9]*"))
    version = driver_version(driver)
    if not cards and version is None:
        return None
    there = f"{len(cards)} NVIDIA device{'s' if len(cards) != 1 else ''}" if cards else "an NVIDIA driver"
    said = f"driver {version}" if version else "a driver of unknown version"
    here = f"torch {torch_version} ({'for CUDA ' + torch_cuda if torch_cuda else 'a build for CPUs'})"
    return (
        f"this machine has {there}, {said}, and {here} cannot use CUDA. {_cure(version, torch_cuda)}; "
        f'or set {HIDDEN}="" to compute on the CPU'
    )


def driver_version(path: Path = _DRIVER) -> str | None:
    """The version of NVIDIA's kernel driver, as in "535.104.05"; None where none is loaded."""
    try:
        first = path.read_text().partition("\n")[0]
    except OSError:
        return None
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", first)
    return match[1] if match else None


def _cure(driver: str | None, torch_cuda: str | None) -> str:
    if driver is None:
        return "Load NVIDIA's driver (nvidia-smi has to answer), in a container with --gpus all"
    major = int(driver.partition(".")[0])
    for least, cuda, tag in _BUILDS:
        if major < least:
            continue
        if torch_cuda and int(torch_cuda.partition(".")[0]) <= int(cuda.partition(".")[0]):
            # The versions fit each other, so something else is wrong.
            return "The two fit: nvidia-smi says what is wrong with the device (permissions, a reset, MIG)"
        return f"This driver runs builds for CUDA {cuda}: install torch from download.pytorch.org/whl ({tag})"
    return "The driver is too old for every build of torch: install driver 580 or later"
