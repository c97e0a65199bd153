"""The report of a preparation: a Markdown page with pictures that a person can look at."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lst_prep.layout import SETS, Layout
from lst_prep.rejection import REASONS
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.schema import FRAMES_PER_SECOND, Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError

_SAMPLE = 2000
"""Documents of each source that histograms and examples are drawn from."""


def write_report(out: str | Path) -> Path:
    """Write OUT/report.md and its pictures under OUT/report/.

    Raises:
        UserError: nothing finished there.
    """
    layout = Layout(out)
    if not layout.summary.exists():
        raise UserError(f"{out}: no summary.json: the preparation did not finish (`lst prep run`)")
    summary = json.loads(layout.summary.read_text())
    pictures = layout.out / "report"
    pictures.mkdir(exist_ok=True)
    lines = ["# Data preparation", "", f"Plan `{summary['plan']}`, folder `{layout.out}`.", ""]
    lines += _sets(layout, summary) + _sources(summary) + _rejections(summary)
    for name in ("speech", "heldout-speech"):
        if (layout.out / name / MANIFEST).exists():
            lines += _speech(ShardSet.open(layout.out / name), name, pictures)
    layout.report.write_text("\n".join(lines) + "\n")
    return layout.report


def _sets(layout: Layout, summary: dict[str, Any]) -> list[str]:
    lines = ["## Shard sets", "", "| set | documents | hours | units | text pieces | shards | codebook | tokenizer |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in SETS:
        if name not in summary["sets"]:
            continue
        manifest = json.loads((layout.out / name / MANIFEST).read_text())
        totals, book = manifest["totals"], manifest["codebook"]
        lines.append(
            f"| {name} | {manifest['documents']:,} | {totals['frames'] / FRAMES_PER_SECOND / 3600:.2f} | "
            f"{totals['frames']:,} | {totals['pieces']:,} | {manifest['shards']:,} | "
            f"{book['extractor'] + ' ' + book['fingerprint'] if book else '-'} | "
            f"{manifest['tokenizer']['fingerprint']} |"
        )
    return [*lines, ""]


def _sources(summary: dict[str, Any]) -> list[str]:
    lines = ["## Sources", "", "| set / source | documents | hours | words | words a second | pieces a word |"]
    lines.append("|---|---|---|---|---|---|")
    for name, totals in sorted(summary["sources"].items()):
        speed = f"{totals['words'] / totals['seconds']:.2f}" if totals["seconds"] else "-"
        lines.append(
            f"| {name} | {totals['documents']:,.0f} | {totals['seconds'] / 3600:.2f} | {totals['words']:,.0f} | "
            f"{speed} | {totals['pieces'] / max(totals['words'], 1):.2f} |"
        )
    alike, compared = summary["units_like_fp32"]
    if compared:
        lines += ["", f"{alike / compared:.1%} of {compared:,} units looked at are those that fp32 gives."]
    return [*lines, ""]


def _rejections(summary: dict[str, Any]) -> list[str]:
    held = (
        f"{summary['heldout_sentences']:,} sentences are held out; "
        f"{summary['heldout_sentences_removed_from_text']:,} were cut out of training text."
    )
    lines = ["## What was not used", "", held, ""]
    if not summary["rejected"]:
        return [*lines, "Nothing was rejected.", ""]
    lines += ["| reason | count | meaning | for instance |", "|---|---|---|---|"]
    for reason, count in sorted(summary["rejected"].items(), key=lambda pair: -pair[1]):
        example = summary["rejection_examples"][reason][0]
        shown = f"`{example['id']}` {example['detail']}".replace("|", "\\|").replace("\n", " ")[:120]
        lines.append(f"| {reason} | {count:,} | {REASONS[reason]} | {shown} |")
    if summary["audio_changes"]:
        changes = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in summary["audio_changes"].items())
        lines += ["", f"Audio was changed on the way in: {changes}."]
    return [*lines, ""]


def _speech(shards: ShardSet, name: str, pictures: Path) -> list[str]:
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(_SAMPLE, len(shards))).astype(int))
    documents = [shards.get(int(i)) for i in chosen]
    words = np.concatenate([np.diff(d.word_frames, axis=1)[:, 0] for d in documents])
    gaps = np.concatenate([_gaps(d) for d in documents])
    scores = np.concatenate([d.word_scores for d in documents])
    rates = np.array([len(d.word_frames) * FRAMES_PER_SECOND / len(d.units) for d in documents])
    used = np.bincount(np.concatenate([d.units for d in documents]))
    shares = used[used > 0] / used.sum()
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    _histograms(pictures / f"{name}.png", words, gaps, scores, rates)
    lines = [
        f"## {name}: {len(documents):,} documents looked at",
        "",
        f"Words last {words.mean():.1f} frames on average, pauses {gaps.mean() if len(gaps) else 0:.1f} (SPEC: 5.8 and "
        f"3.7); a word with its pause {(words.sum() + gaps.sum()) / len(words):.1f} (9.4). "
        f"{(used > 0).sum()} codebook entries occur, perplexity {perplexity:.0f}.",
        "",
        f"![histograms](report/{name}.png)",
        "",
    ]
    for number, document in enumerate(documents[:: max(len(documents) // 3, 1)][:3]):
        file = pictures / f"{name}-{number}.png"
        _example(file, document)
        lines += [f"`{document.id}` ({document.source}, {document.speaker}): {document.text[:200]}", ""]
        lines += [f"![{document.id}](report/{file.name})", ""]
    return lines


def _gaps(document: Document) -> np.ndarray:
    """Lengths in frames of the silences of a document, leading and trailing ones included."""
    spans = document.word_frames
    edges = np.concatenate([[0], spans.ravel(), [len(document.units)]])
    gaps = np.diff(edges)[::2]
    return gaps[gaps > 0]


def _histograms(file: Path, words: np.ndarray, gaps: np.ndarray, scores: np.ndarray, rates: np.ndarray) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.8), layout="constrained")
    panels = figure.subplots(1, 4)
    for panel, values, title in zip(
        panels,
        (words.clip(max=40), gaps.clip(max=40), scores[np.isfinite(scores)], rates),
        ("frames a word", "frames a pause", "alignment score a word", "words a second, by document"),
        strict=True,
    ):
        if len(values):
            panel.hist(values, bins=40)
        panel.set_title(title, fontsize=9)
    figure.savefig(file, dpi=90)


def _example(file: Path, document: Document, seconds: float = 10.0) -> None:
    """Units over time with the words above them."""
    from matplotlib.figure import Figure

    frames = min(len(document.units), int(seconds * FRAMES_PER_SECOND))
    figure = Figure(figsize=(12, 2.2), layout="constrained")
    panel = figure.subplots()
    time = np.arange(frames) / FRAMES_PER_SECOND
    panel.scatter(time, document.units[:frames], s=6, color="black")
    top = float(document.units.max()) or 1.0
    for index, (begin, end) in enumerate(document.word_frames):
        if begin >= frames:
            break
        left, right = begin / FRAMES_PER_SECOND, min(end, frames) / FRAMES_PER_SECOND
        panel.axvspan(left, right, color=("tab:blue", "tab:orange")[index % 2], alpha=0.2, lw=0)
        a, b = document.word_chars[index]
        panel.text((left + right) / 2, 1.03 * top, document.text[a:b], fontsize=7, rotation=45, ha="left")
    panel.set(xlim=(0, frames / FRAMES_PER_SECOND), ylim=(0, 1.35 * top), xlabel="seconds", ylabel="unit")
    figure.savefig(file, dpi=90)
