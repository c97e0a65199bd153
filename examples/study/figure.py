"""Emergence curves: accuracy, margin and bits of every arm over training, each seed faint and their mean bold."""

from pathlib import Path
from typing import Any

import numpy as np

from examples.study.arms import ARMS
from examples.study.measure import DIRECTIONS
from examples.study.summary import Results


def draw(results: Results, out: Path) -> Path:
    """Draw the curves of all runs: the first two rows over units, the third over training FLOPs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 4, figsize=(17, 11), constrained_layout=True)
    for column, direction in enumerate(DIRECTIONS):
        # The end has more items than the points before it: a curve shows those that all its points have.
        count = min(len(point[direction]["right"]) for run in results for point in run["curve"])
        accuracy = lambda point, d=direction, n=count: 100 * float(np.mean(point[d]["right"][:n]))
        margin = lambda point, d=direction, n=count: float(np.mean(point[d]["margin"][:n]))
        _panel(axes[0, column], results, "units", accuracy)
        axes[0, column].axhline(50, color="grey", linewidth=0.8, linestyle=":")
        axes[0, column].set(title=f"{direction} choice", ylabel="accuracy, %", xlabel="units seen")
        _panel(axes[1, column], results, "units", margin)
        axes[1, column].set(title=f"{direction} margin", ylabel="nats a token", xlabel="units seen")
        if column < 2:
            _panel(axes[2, column], results, "flops", margin)
            axes[2, column].set(title=f"{direction} margin", ylabel="nats a token", xlabel="training FLOPs")
    documents = min(len(point["speech"]) for run in results for point in run["curve"])
    for column, axis in enumerate(("units", "flops"), 2):
        _panel(axes[2, column], results, axis, lambda point: float(np.mean(point["speech"][:documents])))
        label = "units seen" if axis == "units" else "training FLOPs"
        axes[2, column].set(title="held-out speech", ylabel="bits a second", xlabel=label)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axes[0, 0].legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    return out


def _panel(axis: Any, results: Results, key: str, value: Any) -> None:
    for number, arm in enumerate(ARMS):
        curves = [run["curve"] for run in results if run["arm"] == arm]
        if not curves:
            continue
        color = f"C{number}"
        x = np.array([[point[key] for point in curve] for curve in curves])
        y = np.array([[value(point) for point in curve] for curve in curves])
        for one_x, one_y in zip(x, y, strict=True):
            axis.plot(one_x, one_y, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(x.mean(0), y.mean(0), color=color, label=arm, linewidth=1.8)
