"""Results as JSON (everything) and Markdown (a table with chance and the paper beside), and comparisons of two runs."""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import ChoiceResult, ItemScore
from megatron_lst.evaluation.paper import PUBLISHED
from megatron_lst.evaluation.statistics import Interval, paired
from megatron_lst.files import write_json, write_text

KINDS = ("mean", "sum", "per_character")


def summarise(result: ChoiceResult, direction: str) -> dict[str, Any]:
    """One task in one direction, as results.json holds it."""
    accuracy = {kind: result.accuracy(kind) for kind in KINDS}
    return {
        "task": result.task,
        "direction": direction,
        "items": len(result.items),
        "refused": result.refused,
        "ties": {kind: [item.id for item in result.items if item.is_tied(kind)] for kind in KINDS},
        "chance": result.chance,
        "accuracy": {kind: None if value is None else asdict(value) for kind, value in accuracy.items()},
        "published": PUBLISHED.get(result.task, {}).get(direction, {}),
        "scores": [asdict(item) for item in result.items],
    }


def write_results(
    folder: Path,
    target: dict[str, Any],
    tasks: Sequence[dict[str, Any]],
    held_out: dict[str, Any],
    skipped: Mapping[str, str] | None = None,
) -> Path:
    """Write results-TIME.json and results-TIME.md; results.json and results.md point to the newest ones.

    Args:
        skipped: what was not evaluated -> why.

    Returns:
        The JSON file.
    """
    content = {"target": target, "tasks": list(tasks), "held_out": held_out, "skipped": dict(skipped or {})}
    stem = free_stem(folder)
    write_text(folder / f"{stem}.md", markdown(target, tasks, held_out, skipped))
    write_json(folder / f"{stem}.json", _finite(content))
    for suffix in (".md", ".json"):
        point_to(folder / f"results{suffix}", f"{stem}{suffix}")
    return folder / f"{stem}.json"


def free_stem(folder: Path, what: str = "results") -> str:
    """results-20261127T161500Z, or with a number behind it where two evaluations end in one second."""
    now = f"{what}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    number, stem = 1, now
    while any(folder.glob(f"{stem}.*")):
        number, stem = number + 1, f"{now}-{number + 1}"
    return stem


def point_to(link: Path, name: str) -> None:
    """Let `link` be a file's newest version: a symbolic link, or a copy where there are none. A file that an older
    version of this program wrote there keeps its content under a name of its own."""
    if link.is_file() and not link.is_symlink():
        at = datetime.fromtimestamp(link.stat().st_mtime, UTC)
        link.rename(link.with_name(f"{link.stem}-{at:%Y%m%dT%H%M%SZ}-older{link.suffix}"))
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name)
    except OSError:
        shutil.copyfile(link.with_name(name), temporary)
    os.replace(temporary, link)


def _finite(value: Any) -> Any:
    """NaN is not JSON: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def markdown(
    target: dict[str, Any],
    tasks: Sequence[dict[str, Any]],
    held_out: dict[str, Any],
    skipped: Mapping[str, str] | None = None,
) -> str:
    """A page for people."""
    lines = [f"# Evaluation of {target.get('name', 'a model')}", ""]
    lines += [f"- {key}: {value}" for key, value in target.items() if key != "name" and value is not None]
    if tasks:
        lines += [
            "",
            "Accuracy in percent with 95 % bootstrap intervals; the candidate with the highest mean log-probability "
            "per token (headline), by their sum, and per character of text.",
            "",
            "| task | direction | items | chance | mean | sum | per character | paper (1B: Base, Static, Curriculum) |",
            "|---|---|---:|---:|---|---|---|---|",
        ]
    for task in tasks:
        published = task["published"]
        shown = ", ".join(f"{published[k]}" for k in ("Base", "Static", "Curriculum") if k in published) or "-"
        cells = [_cell(task["accuracy"][kind]) for kind in KINDS]
        counts = {"refused": len(task["refused"]), "tied": len(task.get("ties", {}).get("mean", ()))}
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        refused = f" ({said})" if said else ""
        lines.append(
            f"| {task['task']} | {task['direction']} | {task['items']}{refused} | {100 * task['chance']:.1f} | "
            + " | ".join(cells)
            + f" | {shown} |"
        )
    if held_out:
        lines += ["", "## Held-out documents", "", "| measure | value |", "|---|---:|"]
        lines += [f"| {key.replace('_', ' ')} | {_number(value)} |" for key, value in held_out.items()]
    if skipped:
        lines += ["", "## Not evaluated", "", *(f"- {what}: {why}" for what, why in skipped.items())]
    return "\n".join([*lines, ""])


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if math.isfinite(value) else "-"


def load_results(folder: Path) -> dict[str, Any]:
    """results.json of a folder (or the file itself). Raises UserError."""
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: no results of `lst eval` ({error.strerror}); name its folder, such as runs/demo/eval"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not the results of `lst eval` ({error})") from None


def compare(a: dict[str, Any], b: dict[str, Any], kind: str = "mean") -> list[dict[str, Any]]:
    """Paired tests of two results on the items that both scored, task by task.

    Returns:
        One entry a task and direction: difference (b - a) with its interval, wins, losses, p-value.

    Raises:
        UserError: they have no task in common.
    """
    others = {(t["task"], t["direction"]): t for t in b["tasks"]}
    found = []
    for task in a["tasks"]:
        other = others.get((task["task"], task["direction"]))
        if other is None:
            continue
        mine, theirs = (
            {s["id"]: ItemScore(**{**s, **{k: tuple(s[k]) for k in ("sums", "tokens", "characters")}}).credit(kind)
             for s in t["scores"]}
            for t in (task, other)
        )  # fmt: skip
        shared = [i for i in mine if i in theirs and mine[i] is not None and theirs[i] is not None]
        if not shared:
            continue
        result = paired(np.array([mine[i] for i in shared]), np.array([theirs[i] for i in shared]))
        found.append({"task": task["task"], "direction": task["direction"], "items": len(shared), **asdict(result)})
    if not found:
        raise UserError("the two results share no task and item")
    return found


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| task | direction | items | difference | wins | losses | p |", "|---|---|---:|---|---:|---:|---:|"]
    for row in rows:
        interval = Interval(**row["difference"])
        lines.append(
            f"| {row['task']} | {row['direction']} | {row['items']} | {100 * interval.mean:+.1f} "
            f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}] | {row['wins']} | {row['losses']} | "
            f"{row['p_value']:.3g} |"
        )
    return "\n".join(lines)
