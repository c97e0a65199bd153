"""Curves of one or several runs with the held-out points of their evaluations, from metrics.jsonl."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron_lst.pages import Chart, Charts, Series, Table
from megatron_lst.pages.blocks import Block
from megatron_lst.pages.charts import SHAPES
from megatron_lst.training.metrics import read_metrics

Records = Sequence[dict[str, Any]]
"""Lines of metrics.jsonl."""
PANELS: tuple[tuple[str, str, str], ...] = (
    ("loss", "Loss", "nats a token"),
    ("loss_speech", "Loss on speech tokens", "nats a token"),
    ("loss_text", "Loss on text pieces", "nats a piece"),
    ("choice", "Held-out choice", "share that is right"),
    ("grad_norm", "Gradient norm", ""),
    ("lr", "Learning rate", ""),
    ("units_per_second", "Speed", "units a second"),
    ("aligned_share", "Documents cut by alignment", "share"),
)
"""Field of metrics.jsonl, title, unit."""


def smooth(values: Sequence[float | None], window: int) -> list[float]:
    """Trailing mean over up to `window` values; gaps are carried over."""
    result: list[float] = []
    recent: list[float] = []
    for value in values:
        if value is not None:
            recent = [*recent[-(window - 1) :], value] if window > 1 else [value]
        result.append(sum(recent) / len(recent) if recent else float("nan"))
    return result


def histories(runs: Sequence[Path]) -> dict[str, Records]:
    """What to call a run, its folder's name where that tells them apart -> its steps, read once."""
    apart = len({run.name for run in runs}) == len(runs)
    return {run.name if apart else str(run): read_metrics(run) for run in runs}


def summarise(name: str, records: Records) -> dict[str, Any]:
    """The figures of a run that a table shows: last losses (mean of the last tenth), speed (median), steps.

    Args:
        records: at least one step.
    """
    last = records[-max(1, len(records) // 10) :]

    def mean(key: str) -> float | None:
        values = [r[key] for r in last if r.get(key) is not None]
        return sum(values) / len(values) if values else None

    speeds = sorted(r["units_per_second"] for r in records)
    return {
        "run": name,
        "steps": records[-1]["step"],
        "units": sum(r["units"] for r in records),
        "tokens": sum(r["tokens"] for r in records),
        "loss": mean("loss"),
        "loss_speech": mean("loss_speech"),
        "loss_text": mean("loss_text"),
        "units_per_second": speeds[len(speeds) // 2],
        "seconds": sum(r["seconds"] for r in records),
        "skipped": sum(bool(r.get("skipped")) for r in records),
    }


def comparison(runs: Mapping[str, Records]) -> list[Block]:
    """One row a run that has steps, where there are several."""
    found = [summarise(name, records) for name, records in runs.items() if records]
    if len(runs) < 2 or not found:
        return []
    rows = [["-" if v is None else f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
             for v in summary.values()] for summary in found]  # fmt: skip
    head = [key.replace("_", " ") for key in found[0]]
    return [Table(head, rows, "Losses are means of the last tenth of the steps, the speed is the median")]


def curves(runs: Mapping[str, Records]) -> list[Block]:
    """A chart a panel over the units that the runs have seen; held-out measures are points of their own."""
    series: dict[str, list[Series]] = {key: [] for key, *_ in PANELS}
    shapes: dict[str, str] = {}  # a source looks the same in every chart and run
    for colour, (name, records) in enumerate(runs.items()):
        units = list(accumulate(r["units"] for r in records))
        for key, found in series.items():
            values = [r.get(key) for r in records]
            if any(v is not None for v in values):
                smoothed = smooth(values, max(1, len(records) // 40))
                points = [(u, v) for u, v in zip(units, smoothed, strict=True) if v == v]
                faint = [(u, v) for u, v in zip(units, values, strict=True) if v is not None]
                found.append(Series(name, colour, points, faint))
    for colour, (name, records) in enumerate(runs.items()):
        units = list(accumulate(r["units"] for r in records))
        for field in _held_out_fields(records):
            panel, source = _panel(field)
            if panel in series:
                points = [(u, r[field]) for u, r in zip(units, records, strict=True) if r.get(field) is not None]
                shape = shapes.setdefault(source, SHAPES[len(shapes) % len(SHAPES)])
                series[panel].append(Series(f"{name}, held out: {source}", colour, points, shape=shape))
    charts = [Chart(title, "units seen", unit, series[key]) for key, title, unit in PANELS if series[key]]
    return [Charts(charts)] if charts else []


def _held_out_fields(records: Records) -> list[str]:
    """Fields of held-out measures that some step has."""
    return list({key: None for r in records for key, v in r.items() if key.startswith("heldout_") and v is not None})


def _panel(field: str) -> tuple[str, str]:
    """`heldout_SOURCE_loss_text` -> its panel and what it was measured on."""
    name = field.removeprefix("heldout_")
    if name.startswith("choice_"):
        return "choice", name.removeprefix("choice_")
    source, _, kind = name.rpartition("_loss")
    return f"loss{kind}", source


def held_out_table(records: Records) -> list[Block]:
    """All held-out measures, a row a step."""
    fields = _held_out_fields(records)
    rows = [
        [f"{r['step']:,}", *("-" if r.get(field) is None else f"{r[field]:.4f}" for field in fields)]
        for r in records
        if any(r.get(field) is not None for field in fields)
    ]
    head = ["step", *(field.removeprefix("heldout_").replace("_", " ") for field in fields)]
    return [Table(head, rows[-200:], "Held-out measures while it trained")] if rows else []
