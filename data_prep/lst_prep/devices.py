"""Where and in which precision a neural stage runs."""

import os
from typing import TYPE_CHECKING

from megatron_lst.errors import UserError
from megatron_lst.gpu import gpu_is_usable
from megatron_lst.machine import usable_cores

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str) -> "torch.device":
    """`auto`: a CUDA device where there is one (workers take turns by LST_PREP_WORKER), else the CPU.

    Raises:
        UserError: an explicit device that is not there, or a GPU that is there and cannot be used.
    """
    import torch

    if wanted == "auto":
        if not gpu_is_usable():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LST_PREP_WORKER", "0")) % torch.cuda.device_count())
    device = torch.device(wanted)
    if device.type == "cuda" and not gpu_is_usable():
        raise UserError(f"device {wanted}: no CUDA device here; use `auto` or `cpu`")
    return device


def decode_threads(wanted: int | None, neural: bool, device: str) -> int:
    """Threads of a worker that decode: `jobs.decode_threads`, and what it is by default.

    Args:
        neural: the stage has a model that may be on a GPU.
        device: where it runs, as `choose_device` takes it.
    """
    if wanted is not None:
        return wanted
    if not neural or choose_device(device).type != "cuda":
        return 0
    import torch

    return min(8, max(1, usable_cores() // torch.cuda.device_count()))


def choose_dtype(wanted: str, device: "torch.device") -> "torch.dtype":
    """`auto`: bf16 on CUDA, fp32 elsewhere. Raises UserError for an unknown name."""
    import torch

    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if wanted not in names:
        raise UserError(f"precision {wanted!r} is not one of auto, fp32, bf16")
    return names[wanted]


def model_fingerprint(model: "torch.nn.Module") -> str:
    """sha256 of a model's parameters and buffers, names included."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
