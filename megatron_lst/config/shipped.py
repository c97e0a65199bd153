"""The configurations that come with the package: `lst train lst-1b` finds them from anywhere.

In the wheel they lie beside this file, in a checkout in `configs/`. One of them counts as standing in a folder
`configs` of the current folder, as it does in a checkout.
"""

from pathlib import Path

_HERE = Path(__file__).resolve()
COUNTS_AS = Path("configs")
"""Where they count as standing."""


def folder() -> Path | None:
    """Where they lie; None: nowhere."""
    for found in (_HERE.with_name("shipped_configs"), _HERE.parents[2] / "configs"):
        if (found / "lst-1b.yaml").is_file():
            return found
    return None


def names() -> list[str]:
    """What they are called: `lst-1b`, `warm/llama-3.2-1b`."""
    root = folder()
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml")) if root else []


def find(given: str | Path) -> tuple[Path, Path] | None:
    """(file, where it counts as standing) of `lst-1b`, `lst-1b.yaml` or `configs/lst-1b.yaml`; None: it is none of
    them, or there is something at that path."""
    path, root = Path(given), folder()
    if root is None or path.is_absolute() or path.exists():
        return None
    inside = Path(*path.parts[1:]) if path.parts[:1] == COUNTS_AS.parts else path
    if ".." in inside.parts or not inside.parts:
        return None
    inside = inside if inside.suffix == ".yaml" else inside.with_name(f"{inside.name}.yaml")
    return (root / inside, COUNTS_AS / inside) if (root / inside).is_file() else None
