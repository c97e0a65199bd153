"""Prints pip constraints: torch, and what is compiled for it, stay as they are here; the rest is as in constraints.txt.

    python3 requirements/pins.py

An image such as NVIDIA's, or a machine with a CUDA build of torch, has torch, triton and numpy compiled for each other;
pip must not replace them. Runs before anything is installed, hence only the standard library.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
KEPT = re.compile(
    r"(torch|torchvision|torchaudio|torchao|triton|pytorch-triton|numpy|apex|flash-attn|transformer-engine|cuda|nvidia)"
    r"(-.*)?"
)
"""Torch, and what is compiled for it or for its CUDA."""


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: "2.11.0+cu130" -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def pins(constraints: str, installed: dict[str, str]) -> list[str]:
    """Constraint lines.

    Args:
        constraints: text of the project's constraints.
        installed: name -> version of what is here.
    """
    here = {normal(name): version for name, version in installed.items() if KEPT.fullmatch(normal(name))}
    lines = [f"{name}=={version}" for name, version in sorted(here.items())]
    for line in constraints.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==", line)
        if match and normal(match[1]) not in here:
            lines.append(line)
    return lines


def installed() -> dict[str, str]:
    """Name -> version of what this Python imports: of two, the first on its path."""
    found: dict[str, str] = {}
    for distribution in distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(normal(name), distribution.version)
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(pins((REQUIREMENTS / "constraints.txt").read_text(), installed())) + "\n")
