"""Text ability of a run beside the language model's own: a table, and a chart a measure with the original's line."""

from itertools import accumulate
from pathlib import Path

from megatron_lst.pages import Chart, Charts, Series, Table
from megatron_lst.pages.blocks import Block
from megatron_lst.training.report.curves import Records
from megatron_lst.training.text_ability import ORIGINAL, PREFIX, read_ability

Row = tuple[str, int | None, dict[str, float]]
"""What it is, units seen, measures by name."""


def ability_rows(run: Path, records: Records) -> list[Row]:
    """The original (None units), step 0 and every step that has measures; empty for a run without them."""
    said = read_ability(run)
    rows: list[Row] = [("original", None, said["original"])] if said.get("original") else []
    if said.get("start"):
        rows.append(("step 0", 0, _own(said["start"])))
    for units, record in zip(accumulate(r["units"] for r in records), records, strict=True):
        if own := _own(record):
            rows.append((f"step {record['step']:,}", units, own))
    return rows


def _own(record: dict[str, float]) -> dict[str, float]:
    """The run's own measures in a record."""
    return {
        key.removeprefix(PREFIX): value
        for key, value in record.items()
        if key.startswith(PREFIX) and not key.endswith(ORIGINAL) and value is not None
    }


def ability_cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of a table."""
    names = list(dict.fromkeys(name for _, _, measures in rows for name in measures))
    cells = [[what, *(f"{m[name]:.4g}" if name in m else "-" for name in names)] for what, _, m in rows]
    return ["", *(name.replace("_", " ") for name in names)], cells


def text_ability(run: Path, records: Records) -> list[Block]:
    """Blocks of the run's page."""
    rows = ability_rows(run, records)
    if not rows:
        return []
    original = next((measures for _, units, measures in rows if units is None), {})
    last = max((units for _, units, _ in rows if units is not None), default=0)
    charts = []
    for name in dict.fromkeys(name for _, units, measures in rows if units is not None for name in measures):
        points = [(float(u), measures[name]) for _, u, measures in rows if u is not None and name in measures]
        series = [Series(run.name, 0, points), Series(f"{run.name}, measured", 0, points, shape="dot")]
        if name in original:
            series.append(Series("original", 1, [(0.0, original[name]), (float(max(last, 1)), original[name])]))
        charts.append(Chart(name.replace("_", " "), "units seen", series=series))
    head, cells = ability_cells(rows)
    return [
        Charts(charts),
        Table(head, cells, "Held-out text and tasks of lm-eval; the original is the language model"),
    ]
