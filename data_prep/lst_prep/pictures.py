"""The pictures of a preparation's report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_lst.documents.schema import Document

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_LONGEST = 40
"""Frames; longer words and pauses are counted in the last bar."""
_WORD_COLOURS = ("#9ecae1", "#fdd0a2")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _bare(panel: "Axes") -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def draw_histograms(
    file: Path, words: np.ndarray, pauses: np.ndarray, scores: np.ndarray, rates: np.ndarray, frame_rate: float
) -> None:
    """Lengths of words and pauses, which are the patches of aligned patching, scores and speaking rates.

    Args:
        words, pauses: int [n], frames.
        scores: float [n], one a word.
        rates: float [n], words a second of each document.
        frame_rate: frames a second.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(12, 2.9)
    panels: list[Axes] = list(figure.subplots(1, 4))
    frames = np.arange(0.5, _LONGEST + 1)  # one bar a frame, centred on it
    plan: list[tuple[np.ndarray, Any, str, str]] = [
        (
            words.clip(max=_LONGEST),
            frames,
            "word patches",
            f"frames ({1000 / frame_rate:g} ms), {_LONGEST} or more in the last",
        ),
        (
            pauses.clip(max=_LONGEST),
            frames,
            "pause patches",
            f"frames ({1000 / frame_rate:g} ms), {_LONGEST} or more in the last",
        ),
        (scores, 40, "alignment score of words", "log-probability a frame"),
        (rates, min(20, max(len(rates) // 3, 5)), "speaking rate of documents", "words a second"),
    ]
    for panel, (values, bins, title, label) in zip(panels, plan, strict=True):
        _bare(panel)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(label, fontsize=8)
        panel.tick_params(labelsize=8)
        if not len(values):
            panel.text(0.5, 0.5, "none", ha="center", transform=panel.transAxes)
            continue
        panel.hist(values, bins=bins, color="#4c78a8")
        panel.set_ylim(top=1.15 * panel.get_ylim()[1])  # room for the median's name
        panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        middle = float(np.median(values))
        panel.axvline(middle, color="#e45756", lw=1)
        panel.annotate(
            f"median {middle:.3g}",
            (middle, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(4 if middle < sum(panel.get_xlim()) / 2 else -4, 0),
            textcoords="offset points",
            ha="left" if middle < sum(panel.get_xlim()) / 2 else "right",
            va="top",
            fontsize=8,
            color="#e45756",
        )
    panels[0].set_ylabel("how many", fontsize=8)
    figure.savefig(file, dpi=_DPI)


def draw_rejections(file: Path, rejected: dict[str, dict[str, int]], most: int = 10) -> None:
    """Horizontal bars, one a reason, divided by source.

    Args:
        rejected: source -> reason -> count.
        most: sources that get a colour of their own; the others share one.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    sources = sorted(rejected, key=lambda source: -sum(rejected[source].values()))
    totals: dict[str, int] = {}
    for counts in rejected.values():
        for reason, count in counts.items():
            totals[reason] = totals.get(reason, 0) + count
    reasons = sorted(totals, key=lambda reason: (totals[reason], reason))
    groups = [[source] for source in sources[:most]] + ([sources[most:]] if len(sources) > most else [])
    figure = _figure(12, 0.9 + max(0.28 * len(reasons), 0.19 * len(groups)))
    panel = figure.subplots()
    _bare(panel)
    left = np.zeros(len(reasons))
    for index, group in enumerate(groups):
        widths = np.array([sum(rejected[source].get(reason, 0) for source in group) for reason in reasons])
        label = (group[0] or "no source") if len(group) == 1 else f"{len(group)} others"
        panel.barh(reasons, widths, left=left, height=0.7, color=colormaps["tab20"](index), label=label)
        left += widths
    for row, reason in enumerate(reasons):
        panel.text(left[row], row, f" {totals[reason]:,}", va="center", fontsize=8)
    panel.set_xlabel("rejected", fontsize=8)
    panel.set_xlim(0, 1.08 * left.max())
    panel.tick_params(labelsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(fontsize=8, frameon=False, loc="outside right upper", title="source", title_fontsize=8)
    figure.savefig(file, dpi=_DPI)


def draw_aligned_row(file: Path, document: Document, rate: float, seconds: float = 10.0) -> None:
    """The first seconds of a document: units over time, each word's span coloured, its text above it."""
    frames = min(len(document.speech_ids), int(seconds * rate))
    figure = _figure(12, 2.7)
    above, panel = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.2))
    above.axis("off")
    _bare(panel)
    time = (np.arange(frames) + 0.5) / rate
    panel.scatter(time, document.speech_ids[:frames], s=7, color="black", zorder=2)
    for index, (begin, end) in enumerate(document.word_frames):
        if begin >= frames:
            break
        left, right = begin / rate, min(end, frames) / rate
        panel.axvspan(left, right, color=_WORD_COLOURS[index % 2], alpha=0.6, lw=0)
        first, last = document.word_chars[index]
        if end <= frames:  # the word at the picture's edge would stand half outside
            above.text(
                (left + right) / 2, 0, document.text[first:last], fontsize=8, rotation=50, ha="left", va="bottom"
            )
    panel.set(xlim=(0, frames / rate), xlabel="seconds", ylabel="unit")
    panel.tick_params(labelsize=8)
    figure.savefig(file, dpi=_DPI)
