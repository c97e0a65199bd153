"""Curves of one or several runs, drawn from their metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lst.config.load import build, read_yaml
from megatron_lst.errors import UserError
from megatron_lst.training.metrics import read_metrics
from megatron_lst.vocabulary import Vocabulary

PANELS: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", "nats per token"),
    ("loss_speech", "loss on speech units", "nats per unit"),
    ("loss_text", "loss on text pieces", "nats per piece"),
    ("grad_norm", "gradient norm", ""),
    ("units_per_second", "speed", "units per second"),
    ("aligned_share", "documents cut by alignment", "share"),
)


def smooth(values: Sequence[float | None], window: int) -> list[float]:
    """Trailing mean over up to `window` values; gaps are carried over."""
    result: list[float] = []
    recent: list[float] = []
    for value in values:
        if value is not None:
            recent = [*recent[-(window - 1) :], value] if window > 1 else [value]
        result.append(sum(recent) / len(recent) if recent else float("nan"))
    return result


def draw_curves(runs: Sequence[Path], out: Path) -> Path:
    """Draw loss, gradient norm and speed of all runs over the units that they have seen.

    Raises:
        UserError: a run has no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7.5), constrained_layout=True)
    for run in runs:
        records = read_metrics(run)
        if not records:
            raise UserError(f"{run}: no metrics.jsonl with a finished step")
        units = _cumulative([r["units"] for r in records])
        window = max(1, len(records) // 40)
        for axis, (key, title, label) in zip(axes.flat, PANELS, strict=True):
            values = [r.get(key) for r in records]
            if all(v is None for v in values):
                continue
            (line,) = axis.plot(units, smooth(values, window), label=run.name)
            faint = [float("nan") if v is None else v for v in values]
            axis.plot(units, faint, color=line.get_color(), alpha=0.2, linewidth=0.8)
            axis.set(title=title, ylabel=label, xlabel="units seen")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    return out


def summarise(run: Path) -> dict[str, Any]:
    """The figures of a run that a table shows: last losses (mean of the last tenth), speed (median), steps."""
    records = read_metrics(run)
    if not records:
        raise UserError(f"{run}: no metrics.jsonl with a finished step")
    last = records[-max(1, len(records) // 10) :]

    def mean(key: str) -> float | None:
        values = [r[key] for r in last if r.get(key) is not None]
        return sum(values) / len(values) if values else None

    speeds = sorted(r["units_per_second"] for r in records)
    return {
        "run": run.name,
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


def vocabulary_of(run: Path) -> str:
    """Text pieces and codec of a run, for people; empty: its configuration is not there."""
    path = run / "config.yaml"
    return str(build(Vocabulary, read_yaml(path).get("vocabulary", {}))) if path.is_file() else ""


def _cumulative(values: Sequence[int]) -> list[int]:
    total, result = 0, []
    for value in values:
        total += value
        result.append(total)
    return result
