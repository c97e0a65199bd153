"""Everything that one `make gpu` found, on one page: first-light.json for programs, first-light.md for people.

    python -m benchmarks.first_light FOLDER

The page holds the machine, how each part ended, kernels beside their peers, steps beside the baseline's and the
estimate, memory, host syncs, where the time goes, and what failed. A part that is missing says so.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured import machine
from megatron_lst.files import write_text

LAST_LINES = 15
"""Of a part that failed, as many lines of its log are on the page."""


def write_page(folder: Path, since: float = 0.0) -> Path:
    """Write both files.

    Args:
        folder: what `benchmarks.parts` wrote.
        since: results whose file is older (seconds since the epoch) are another run's, and are left out.

    Returns:
        The Markdown page.
    """
    found = collect(folder, since)
    write_text(folder / "first-light.json", json.dumps(found, indent=1, default=str) + "\n")
    page = folder / "first-light.md"
    write_text(page, markdown(found))
    return page


def collect(folder: Path, since: float = 0.0) -> dict[str, Any]:
    """What there is of this run, as plain data: machine, parts, kernels, steps, generation, failed."""
    parts = _read(folder / "summary.json") or {}
    results = [(path, _read(path)) for path in sorted(folder.glob("*.json")) if path.stat().st_mtime >= since]
    kinds: dict[str, list[dict[str, Any]]] = {"kernels": [], "step": [], "generation": []}
    for path, result in results:
        kind = path.name.partition("-")[0]
        if kind in kinds and result:
            kinds[kind].append({"file": path.name, **result})
    failed = {name: _tail(folder / f"{name}.log") for name, part in parts.items() if part["exit_code"] not in (0, 2)}
    return {"machine": machine(), "parts": parts, **kinds, "failed": failed}


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    where = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    lines = [
        "# First light",
        "",
        f"{where['device']}, Python {where['python']}, CUDA {where['cuda'] or 'none'}, {versions}; {where['date']}, "
        f"commit {where['commit'] or 'unknown'}{' (changed)' if where['changed_since_commit'] else ''}.",
        "",
        *_table(("part", "shows", "ended", "s"), _parts(found["parts"])),
        *_steps(found["step"]),
        *_kernels(found["kernels"]),
        *_generation(found["generation"]),
    ]
    for name, tail in found["failed"].items():
        lines += ["", f"## {name} failed", "", "```", *tail, "```"]
    return "\n".join(lines) + "\n"


def _parts(parts: dict[str, Any]) -> Iterable[Sequence[object]]:
    for name, part in parts.items():
        code = part["exit_code"]
        said = {0: "well", 2: "nothing to do here", None: "out of time"}.get(code, f"exit code {code}")
        yield name, part["shows"], said, f"{part['seconds']:.0f}"


def _steps(steps: list[dict[str, Any]]) -> list[str]:
    if not steps:
        return ["", "No step was measured."]
    rows, lines = [], []
    for step in steps:
        mfu = "-" if step["mfu"] is None else f"{100 * step['mfu']:.1f}"
        busy = "-" if step["busy"] is None else f"{100 * step['busy']:.0f}"
        expected = step.get("expected") or {}
        rows.append(
            (
                f"{Path(step['config']).stem} {' '.join(step['overrides'])}".strip()
                + (" (tiny)" if step["tiny"] else ""),
                f"{step['units_per_second']:,.0f}",
                f"{expected['units_per_second']:,.0f}" if expected.get("units_per_second") else "-",
                f"{1000 * step['seconds']['median']:.1f}",
                mfu,
                busy,
                f"{step['peak_memory_gib']:.1f}",
                sum(step["host_syncs_per_step"].values()),
                "; ".join(step["faults"]) or "none",
            )
        )
        if where := list(_modules(step["modules"])):
            lines += ["", f"### {Path(step['config']).stem}: where the time goes", ""]
            lines += _table(("module", "forward, ms", "backward, ms"), where)
    heading = ("step", "units/s", "expected (estimate)", "ms", "MFU, %", "busy, %", "peak GiB", "syncs", "faults")
    return ["", "## Steps", "", *_table(heading, rows), *lines]


def _modules(modules: dict[str, dict[str, float]]) -> Iterable[Sequence[object]]:
    for name, spent in sorted(modules.items(), key=lambda item: -sum(item[1].values())):
        yield name, f"{spent['forward']:.2f}", f"{spent['backward']:.2f}"


def _kernels(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return ["", "No kernel was timed."]
    lines = ["", "## Kernels beside their peers"]
    for result in results:
        timed = result["results"]
        rows = [
            (r["op"], r["case"], r["backend"], r["direction"], f"{r['milliseconds']:.3f}", f"{100 * r['fraction']:.0f}")
            for r in timed
        ]
        heading = ("operation", "case", "by", "pass", "ms", "% of this GPU's copy or product rate")
        lines += ["", *_table(heading, rows), ""]
        lines += [f"- wrong: {problem}" for problem in result["problems"]]
        lines += [f"- left out: {left}" for left in result["left_out"]]
    return lines


def _generation(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return ["", "No generation was timed."]
    rows = []
    for result in results:
        for run in result["runs"]:
            speeds = [f"{run[name]['tokens_per_second']:,.0f}" for name in ("lst", "baseline")]
            rows.append((run["batch"], run["prompt"], run["decoding"], *speeds))
    return ["", "## Generation", "", *_table(("batch", "prompt", "decoding", "LST, tokens/s", "baseline"), rows)]


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"

    return [line(heading), "|" + "---|" * len(heading), *(line(row) for row in rows)]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return ["(it left no log)"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if not (arguments.folder / "summary.json").is_file():
        sys.exit(f"{arguments.folder}: no summary.json; make it by python -m benchmarks.parts --out {arguments.folder}")
    print(write_page(arguments.folder))
