"""From the runs' results to a table: means with bootstrap intervals over items and seeds, and what they cannot show."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from examples.study.arms import ARMS
from examples.study.measure import DIRECTIONS
from megatron_lst.evaluation.statistics import Interval

RESAMPLES = 2000
SPENT = (
    ("parameters", ",d"),
    ("steps", ".0f"),
    ("units", ",.0f"),
    ("filled", ",.0f"),
    ("tokens", ",.0f"),
    ("flops", ".3g"),
)
"""What a run has spent, and how it is shown."""
REFERENCE = "base"
"""The arm that the others are compared with."""
Results = Sequence[dict[str, Any]]

BITS = {"speech": "Held-out speech, bits a second", "text": "Held-out text, bits a word"}
"""What is coded, and how it is headed. Less is better."""

CAVEATS = """\
Intervals resample items and seeds together. An interval of a difference that covers 0 means that nothing was found.
These models have about a million parameters and see a few hours of speech, some of it more than once; the patched ones
have more layers, spend more FLOPs a unit (which `base-flops` answers, for FLOPs alone) and see more speech and a longer
context in the same units. The study says what happens at this size, not whether the paper's results hold at theirs."""


def crossed_bootstrap(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over seeds and items, both resampled. values: [seeds, items]."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    seeds, items = values.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    by_item = rng.multinomial(items, np.full(items, 1 / items), resamples) / items
    means = np.einsum("rs,si,ri->r", by_seed, values, by_item, optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), values.size)


def of_arm(results: Results, arm: str, value: Callable[[dict[str, Any]], Any], point: int = -1) -> np.ndarray:
    """[seeds, ...], a value of one point of an arm's curves, by seed."""
    runs = sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"])
    return np.array([value(run["curve"][point]) for run in runs])


def summarise(results: Results) -> dict[str, Any]:
    """Final measures of each arm, and their differences from `base` with the same seeds and items."""
    return {arm: _summary(results, arm) for arm in ARMS if any(r["arm"] == arm for r in results)}


def _summary(results: Results, arm: str) -> dict[str, Any]:
    runs = [r for r in results if r["arm"] == arm]
    last = [r["curve"][-1] for r in runs]
    spent = {key: float(np.mean([point[key] for point in last])) for key in ("units", "filled", "tokens", "flops")}
    found: dict[str, Any] = {
        "seeds": len(runs),
        "steps": float(np.mean([r["steps"] for r in runs])),
        "items": len(last[0][DIRECTIONS[0]]["right"]),
        "parameters": runs[0]["parameters"],
        "seconds": float(np.mean([r["seconds"] for r in runs])),
        **spent,
    }
    for direction in DIRECTIONS:
        for kind in ("right", "margin"):
            pick = lambda point, d=direction, k=kind: point[d][k]
            found[f"{direction} {kind}"] = _measure(results, arm, pick)
    for modality in BITS:
        found[f"{modality} bits"] = _measure(results, arm, itemgetter(modality))
    return found


def _measure(results: Results, arm: str, pick: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    values, reference = of_arm(results, arm, pick), of_arm(results, REFERENCE, pick)
    interval = crossed_bootstrap(values)
    measured: dict[str, Any] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    measured["by_seed"] = values.mean(1).tolist()
    if arm != REFERENCE and values.shape == reference.shape:
        gap = crossed_bootstrap(values - reference)
        measured["minus_base"] = {"mean": gap.mean, "low": gap.low, "high": gap.high}
    return measured


def markdown(summary: dict[str, Any], plan: dict[str, Any]) -> str:
    """The tables as Markdown.

    Args:
        summary: see `summarise`.
        plan: as JSON.
    """
    seeds = min(arm["seeds"] for arm in summary.values())
    items = max(arm["items"] for arm in summary.values())
    lines = [
        "# Study",
        "",
        f"{seeds} seed(s), {items} items in a direction, 95 % bootstrap intervals over items and seeds. "
        "Choices are 1 of 2 by mean log-probability: chance 50 %. The wrong words are another document's, in the same "
        "voice. Margins are nats a token, true continuation minus false.",
        "",
        *_table(
            ["arm", "parameters", "steps", "units", "of these filled", "raw tokens", "training FLOPs"],
            [[arm, *(format(s[key], form) for key, form in SPENT)] for arm, s in summary.items()],
        ),
        "",
        "## Accuracy, %",
        "",
        *_measures(summary, "right", 100, ".1f"),
        "",
        "## Margin, nats a token",
        "",
        *_measures(summary, "margin", 1, ".3f"),
        "",
        "## Bits (less is better)",
        "",
        *_table(
            ["arm", *(column for title in BITS.values() for column in (title, "minus base"))],
            [[arm, *(cell for m in BITS for cell in _cells(s[f"{m} bits"], 1, ".2f"))] for arm, s in summary.items()],
        ),
        "",
        CAVEATS,
    ]
    return "\n".join(lines) + "\n"


def _measures(summary: dict[str, Any], kind: str, scale: float, form: str) -> list[str]:
    """Every direction, and in brackets its interval; below them the differences from base."""
    head = ["arm", *DIRECTIONS]
    own = [[arm, *(_cells(s[f"{d} {kind}"], scale, form)[0] for d in DIRECTIONS)] for arm, s in summary.items()]
    gaps = [
        [f"{arm} minus {REFERENCE}", *(_cells(s[f"{d} {kind}"], scale, form)[1] for d in DIRECTIONS)]
        for arm, s in summary.items()
        if arm != REFERENCE
    ]
    return _table(head, own + gaps)


def _cells(measured: dict[str, Any], scale: float, form: str) -> tuple[str, str]:
    def show(interval: dict[str, Any], sign: str) -> str:
        mean, low, high = (format(scale * interval[key], sign + form) for key in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    return show(measured, ""), show(measured["minus_base"], "+") if "minus_base" in measured else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
