"""Charts as numbers on a drawing of WIDTH x HEIGHT: templates/charts.html makes SVG of them, coloured by the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 44
_MOST = 400
"""Points of a line; more are averaged."""
SHAPES = ("dot", "ring", "square", "diamond")


@dataclass(frozen=True)
class Series:
    """One line, or one set of points.

    Attributes:
        name: for the legend.
        colour: 0, 1, ...
        points: (x, y) each.
        faint: the same before it was smoothed.
        shape: of points that are not joined, one of SHAPES; empty: a line.
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    faint: Sequence[tuple[float, float]] = ()
    shape: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines and points over two axes, or bars where `bars` is given.

    Attributes:
        bars: (left, right, height) each.
        mark: (x, name) of a vertical line.
    """

    title: str
    x_label: str
    y_label: str = ""
    series: Sequence[Series] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    mark: tuple[float, str] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return WIDTH, HEIGHT

    @property
    def empty(self) -> bool:
        return not self.bars and not any(s.points for s in self.series)

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        points = [p for s in self.series for p in (*s.points, *s.faint)]
        if self.bars:
            points += [p for left, right, height in self.bars for p in ((left, 0.0), (right, height))]
        found = np.array(points, float)
        xs, ys = found[:, 0], found[:, 1]
        low, high = float(ys.min()), float(ys.max())
        if self.series and len(ys) > 20:  # the first steps would flatten the rest
            high = max(float(np.quantile(ys, 0.995)), float(np.median(ys)))
        if not self.bars:
            margin = 0.06 * (high - low or abs(high) or 1.0)
            low, high = low - margin, high + margin
        else:
            high *= 1.12
        x0, x1 = float(xs.min()), float(xs.max())
        return (x0, x1 if x1 > x0 else x0 + 1), (low, high if high > low else low + 1)

    def draw(self) -> "Drawing":
        """Positions on the drawing; not of an empty chart."""
        (x0, x1), (y0, y1) = self._ranges()

        def x(value: float) -> float:
            return round(LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1)

        def y(value: float) -> float:
            inside = min(max((value - y0) / (y1 - y0), 0.0), 1.0)
            return round(HEIGHT - BOTTOM - inside * (HEIGHT - TOP - BOTTOM), 1)

        def path(points: Sequence[tuple[float, float]]) -> str:
            return "M" + "L".join(f"{x(a)},{y(b)}" for a, b in thinned(points)) if points else ""

        return Drawing(
            [(x(v), shown(v)) for v in ticks(x0, x1, 5)],
            [(y(v), shown(v)) for v in ticks(y0, y1, 5)],
            [(s, path(s.points), path(s.faint), [(x(a), y(b), f"{s.name}: {b:.4g}") for a, b in s.points])
             for s in self.series],
            [(x(a), y(b), round(max(x(c) - x(a) - 0.6, 0.5), 1), round(y(0) - y(b), 1)) for a, c, b in self.bars],
            (x(self.mark[0]), self.mark[1], self.mark[0] > (x0 + x1) / 2) if self.mark else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """Attributes:
    x_ticks, y_ticks: (position, label).
    series: (series, path, faint path, (x, y, label) of its points).
    bars: (x, y, width, height).
    mark: (x, name, whether the name stands to its left).
    """

    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    series: Sequence[tuple[Series, str, str, Sequence[tuple[float, float, str]]]]
    bars: Sequence[tuple[float, float, float, float]]
    mark: tuple[float, str, bool] | None


def histogram(values: np.ndarray, edges: Sequence[float] | int, title: str, x_label: str) -> Chart:
    """How often values are between two edges, with a line at their median; empty where there are none."""
    if not len(values):
        return Chart(title, x_label)
    counts, borders = np.histogram(values, bins=edges)  # type: ignore[arg-type]
    bars = [(float(a), float(b), float(n)) for a, b, n in zip(borders[:-1], borders[1:], counts, strict=True)]
    middle = float(np.median(values))
    return Chart(title, x_label, bars=bars, mark=(middle, f"median {middle:.3g}"))


def thinned(points: Sequence[tuple[float, float]], most: int = _MOST) -> list[tuple[float, float]]:
    """At most `most` points: means of equal stretches."""
    if len(points) <= most:
        return list(points)
    parts = np.array_split(np.array(points, float), most)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within [low, high], at most about `most`."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def shown(value: float) -> str:
    """A number at an axis: 200k, 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.6g}"
