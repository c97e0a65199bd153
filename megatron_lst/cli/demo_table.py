"""The demo's table: the trained LST, its unpatched baseline and the untrained model on the same held-out documents."""

from pathlib import Path
from typing import Any

from megatron_lst.evaluation.heldout import CONTINUATION, SAME_VOICE

CHOICES = {
    (CONTINUATION, "S->S"): "choice S->S, %",
    (SAME_VOICE, "S->S"): "in one voice, %",
    (CONTINUATION, "T->T"): "choice T->T, %",
}
MEASURES: tuple[tuple[str, str, str], ...] = (
    ("speech_loss_speech", "speech loss, nats a unit", ".3f"),
    ("text_loss_text", "text loss, nats a piece", ".3f"),
    ("speech_bits_per_second", "speech bits a second", ".1f"),
)


def comparison(results: list[tuple[str, Path]]) -> str:
    """Markdown from the folders of `lst eval`.

    Args:
        results: what to call a model, and where its results are.
    """
    from megatron_lst.evaluation.report import load_results

    head = ["model", *(title for _, title, _ in MEASURES), *CHOICES.values()]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    items = 0
    for name, folder in results:
        found = load_results(folder)
        tasks = {(task["task"], task["direction"]): task for task in found["tasks"]}
        items = max([items, *(task["items"] for task in tasks.values())])
        measures = [format(found["held_out"][key], form) for key, _, form in MEASURES]
        lines.append("| " + " | ".join([name, *measures, *(_choice(tasks.get(key)) for key in CHOICES)]) + " |")
    lines += [
        "",
        f"Held-out documents. Choice is 1 of 2 by mean log-probability (chance 50 %, {items} items, 95 % bootstrap "
        "intervals): the true continuation or words of another document, which in speech the voice may tell; in one "
        "voice, words of the same document. Bits a second compare patched and unpatched models. A model of this size "
        "after minutes of training shows that everything works, not which model is better.",
    ]
    return "\n".join(lines) + "\n"


def _choice(task: dict[str, Any] | None) -> str:
    found = task and task["accuracy"]["mean"]
    return f"{100 * found['mean']:.0f} [{100 * found['low']:.0f}, {100 * found['high']:.0f}]" if found else "-"
