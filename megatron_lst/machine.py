"""What of this machine a process may use, and what its launcher has told it."""

import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from megatron_lst.errors import UserError

_CGROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def local_identity(proc: Path = Path("/proc")) -> str:
    """What processes have in common that can reach each other by a local socket: a kernel and its network namespace.

    Another for each process where the system does not say, so that nobody counts on it there.
    """
    try:
        kernel = (proc / "sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel}-{(proc / 'self/ns/net').stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{os.getpid()}"


def usable_cores(cgroups: Path = _CGROUPS, own_group: Path = _OWN_GROUP) -> int:
    """Cores that this process may keep busy: its affinity, and the CPU time that its control group allows.

    `os.cpu_count()` is the whole machine, of which a batch job or a container often has a small part.

    Args:
        cgroups: where the control groups of this machine are mounted.
        own_group: the file that names those of this process.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    quota = _cgroup_cores(cgroups, own_group)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _cgroup_cores(root: Path, own: Path) -> float | None:
    """The smallest CPU quota of this process's control group and those above it, in cores; None: there is none."""
    found: list[float] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:  # version 2
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_v1
        else:
            continue
        folder = base / path.strip("/")
        # Inside a container the path may name a group of the host that is not visible: its own group is the root then.
        for place in [folder, *folder.parents]:
            if not place.is_relative_to(base):
                break
            if (cores := read(place)) is not None:
                found.append(cores)
    return min(found, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def environment_number(
    name: str, default: int, environment: Mapping[str, str] = os.environ, *, least: int = 0, most: int = 2**31 - 1
) -> int:
    """A whole number that a launcher left in the environment; `default` where the variable is not set.

    Raises:
        UserError: it is empty or no such number. Kubernetes sets MASTER_PORT=tcp://... where a service is "master".
    """
    text = environment.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= most):
        raise UserError(
            f"{name}={text!r} in the environment: expected a whole number from {least} to {most}; unset it, or set it "
            "to one"
        )
    return int(text)
