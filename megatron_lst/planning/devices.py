"""Accelerators by name: dense bf16 peak and memory, from their makers' data sheets. For MFU and for plans."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One kind of accelerator.

    Attributes:
        name: short name, for `--device`.
        match: what `torch.cuda.get_device_name` contains, all in lower case; every word has to be there.
        peak: dense bf16 FLOP/s with fp32 accumulation (never the sparse figure).
        memory: bytes.
        bandwidth: bytes/s of that memory.
        link: bytes/s in one direction to the other accelerators of a node; 0 where there is PCIe alone.
    """

    name: str
    match: tuple[str, ...]
    peak: float
    memory: float
    bandwidth: float
    link: float


_GB = 1e9
# The first that matches wins: the more particular name stands first.
DEVICES = (
    Device("gb200", ("gb200",), 2500e12, 186 * _GB, 8000 * _GB, 900e9),
    Device("b200", ("b200",), 2250e12, 180 * _GB, 8000 * _GB, 900e9),
    Device("gh200", ("gh200",), 989.4e12, 96 * _GB, 4000 * _GB, 450e9),
    Device("h200", ("h200",), 989.4e12, 141 * _GB, 4800 * _GB, 450e9),
    Device("h100-nvl", ("h100", "nvl"), 835.5e12, 94 * _GB, 3900 * _GB, 300e9),
    Device("h100-pcie", ("h100", "pcie"), 756e12, 80 * _GB, 2000 * _GB, 0.0),
    Device("h100", ("h100",), 989.4e12, 80 * _GB, 3350 * _GB, 450e9),
    Device("h800", ("h800",), 989.4e12, 80 * _GB, 3350 * _GB, 200e9),
    Device("a100-40gb", ("a100", "40gb"), 312e12, 40 * _GB, 1555 * _GB, 300e9),
    Device("a100", ("a100",), 312e12, 80 * _GB, 2039 * _GB, 300e9),
    Device("a800", ("a800",), 312e12, 80 * _GB, 2039 * _GB, 200e9),
    Device("mi300x", ("mi300x",), 1307.4e12, 192 * _GB, 5300 * _GB, 448e9),
    Device("l40s", ("l40s",), 362e12, 48 * _GB, 864 * _GB, 0.0),
    Device("l4", ("l4",), 121e12, 24 * _GB, 300 * _GB, 0.0),
    Device("a10", ("a10",), 125e12, 24 * _GB, 600 * _GB, 0.0),
    Device("rtx4090", ("rtx", "4090"), 165.2e12, 24 * _GB, 1008 * _GB, 0.0),
)


def find_device(name: str) -> Device | None:
    """The device of a name as people or as CUDA write it ("h100", "NVIDIA H100 80GB HBM3"); None: not known."""
    lowered = name.lower()
    for device in DEVICES:
        if device.name == lowered:
            return device
    words = set(lowered.replace("-", " ").replace("_", " ").split())
    for device in DEVICES:
        if all(part in words for part in device.match):
            return device
    return None


def peak_flops(cuda_name: str) -> float | None:
    """Dense bf16 peak of what `torch.cuda.get_device_name()` says; None: not known, so that no MFU is made up."""
    device = find_device(cuda_name)
    return device.peak if device else None
