"""The demo's table: the trained LST, its unpatched baseline and the untrained model, a line for each measure."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatron_lst.evaluation.heldout import CONTINUATION, SAME_VOICE


@dataclass(frozen=True)
class Model:
    """A column.

    Attributes:
        title: what to call it.
        results: folder of `lst eval`.
        run: folder of its training; None: it was not trained.
        speed: its name in the file of `lst eval speed --out`; empty: not measured.
    """

    title: str
    results: Path
    run: Path | None = None
    speed: str = ""


@dataclass(frozen=True)
class Measure:
    """A line: what it is called, and what it means in plain words."""

    title: str
    meaning: str


TRAINING = Measure(
    "units a second, training",
    "units that the large model reads; a patch of four speech tokens is one unit, a token alone is one too.",
)
TOKENS = Measure(
    "raw tokens seen",
    "speech tokens and text pieces in all training steps; where patches hold several, the same units are more data.",
)
GENERATION = Measure(
    "speech tokens a second, generation",
    "how fast it speaks: the patched model runs its large part once for four tokens. That pays where the large part is "
    "most of the model, as in the paper's sizes.",
)
HELD_OUT = {
    "speech_loss_speech": (
        Measure("speech loss, nats a token", "surprise at the next token of held-out speech; lower is better."),
        ".3f",
    ),
    "text_loss_text": (Measure("text loss, nats a piece", "the same for the next piece of held-out text."), ".3f"),
    "speech_bits_per_second": (
        Measure("speech, bits a second", "the same for a second of speech, without its text before it."),
        ".1f",
    ),
}
CHOICES = {
    (CONTINUATION, "S->S"): Measure(
        "choice S->S, %",
        "which of two spoken continuations is true? The wrong one is of another recording, often another voice.",
    ),
    (SAME_VOICE, "S->S"): Measure(
        "choice S->S in one voice, %", "the wrong one is of the same recording: no voice gives it away."
    ),
    (CONTINUATION, "T->T"): Measure("choice T->T, %", "the same choice in writing."),
}


def comparison(models: list[Model], speed: Path) -> str:
    """Markdown: a line for each measure, a column for each model, and what each line means.

    Args:
        speed: what `lst eval speed --out` wrote.
    """
    from megatron_lst.evaluation.report import load_results

    measured = json.loads(speed.read_text())
    found = {model.title: load_results(model.results) for model in models}
    tasks = {
        title: {(task["task"], task["direction"]): task for task in results["tasks"]}
        for title, results in found.items()
    }
    items = max(task["items"] for of_model in tasks.values() for task in of_model.values())
    steps = {model.title: _steps(model.run) for model in models}
    lines: list[tuple[Measure, list[str]]] = [
        (TRAINING, [_training(steps[m.title]) for m in models]),
        (TOKENS, [_tokens(steps[m.title]) for m in models]),
        (GENERATION, [f"{measured[m.speed]['tokens_per_second']:.0f}" if m.speed else "-" for m in models]),
    ]
    for key, (measure, form) in HELD_OUT.items():
        lines.append((measure, [format(found[m.title]["held_out"][key], form) for m in models]))
    for choice, measure in CHOICES.items():
        lines.append((measure, [_choice(tasks[m.title].get(choice)) for m in models]))
    page = ["| | " + " | ".join(model.title for model in models) + " |", "|---|" + "---:|" * len(models)]
    page += ["| " + " | ".join([measure.title, *cells]) + " |" for measure, cells in lines]
    page += ["", *(f"- **{measure.title}**: {measure.meaning}" for measure, _ in lines)]
    page += [
        "",
        f"Choices are 1 of 2 by mean log-probability: chance is 50 %, {items} items, 95 % bootstrap intervals. A model "
        "of this size after minutes of training shows that everything works, not which model is better.",
    ]
    return "\n".join(page) + "\n"


def _steps(run: Path | None) -> list[dict[str, Any]]:
    """Metrics of every training step of a run."""
    from megatron_lst.training.metrics import read_metrics

    return [] if run is None else [line for line in read_metrics(run) if "units_per_second" in line]


def _training(steps: list[dict[str, Any]]) -> str:
    return f"{median(step['units_per_second'] for step in steps):,.0f}" if steps else "-"


def _tokens(steps: list[dict[str, Any]]) -> str:
    return f"{sum(steps[-1]['raw_tokens'].values()):,}" if steps else "0"


def _choice(task: dict[str, Any] | None) -> str:
    found = task and task["accuracy"]["mean"]
    return f"{100 * found['mean']:.0f} [{100 * found['low']:.0f}, {100 * found['high']:.0f}]" if found else "-"
