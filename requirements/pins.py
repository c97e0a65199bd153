"""Prints pip constraints: what this Python has already stays as it is, everything else is as in constraints.txt.

    python3 requirements/pins.py

An image such as NVIDIA's, or a machine with a CUDA build of torch, has torch, triton and numpy compiled for each other;
pip must not replace them. What it has outside the bounds of requirements/*.txt does not stay: the environment then gets
its own version. Runs before anything is installed, hence only the standard library.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
FREE = ("pip", "setuptools", "wheel", "megatron-lst")
"""Tools that packages ask newer versions of, with nothing compiled against them; and the project itself."""


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: "2.11.0+cu130" -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def allows(specifier: str, version: str) -> bool:
    """Whether bounds such as ">=0.9,<3" admit a version; both are compared by their leading numbers."""
    compare = {
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "==": lambda a, b: a == b,
    }
    for part in filter(None, specifier.replace(" ", "").split(",")):
        match = re.fullmatch(r"(>=|<|==)([0-9][0-9.]*)", part)
        if not match:
            raise ValueError(f"{part!r}: a bound is >=, < or == with a version")
        numbers, wanted = release(version), release(match[2])
        length = max(len(numbers), len(wanted))
        if not compare[match[1]](*(v + (0,) * (length - len(v)) for v in (numbers, wanted))):
            return False
    return True


def bounds(folder: Path = REQUIREMENTS) -> dict[str, str]:
    """Package -> bounds, of every requirements file but the constraints and what is installed without dependencies."""
    found = {}
    for path in sorted(folder.glob("*.txt")):
        if path.name in ("constraints.txt", "expected-gaps.txt", "no-deps.txt", "torch.txt"):
            continue
        for line in path.read_text().splitlines():
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;#]*)", line)
            if match and not line.startswith("#"):
                found[normal(match[1])] = match[2].strip()
    return found


def pins(constraints: str, installed: dict[str, str], bounded: dict[str, str]) -> list[str]:
    """Constraint lines.

    Args:
        constraints: text of the project's constraints.
        installed: name -> version of what is here.
        bounded: name -> bounds of the project's requirements.
    """
    here = {
        normal(name): version
        for name, version in installed.items()
        if normal(name) not in FREE and allows(bounded.get(normal(name), ""), version)
    }
    lines = [f"{name}=={version}" for name, version in sorted(here.items())]
    for line in constraints.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==", line)
        if match and normal(match[1]) not in here:
            lines.append(line)
    return lines


def installed() -> dict[str, str]:
    """Name -> version of what this Python can import."""
    return {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}


if __name__ == "__main__":
    sys.stdout.write("\n".join(pins((REQUIREMENTS / "constraints.txt").read_text(), installed(), bounds())) + "\n")
