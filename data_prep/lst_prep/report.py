"""The report of a preparation: a Markdown page with pictures that a person can look at."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lst_prep.layout import SETS, Layout
from lst_prep.pictures import draw_aligned_row, draw_histograms, draw_rejections
from lst_prep.rejection import REASONS
from megatron_lst.documents.codec import codec_of
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError

_SAMPLE = 2000
"""Documents of each set that histograms and examples are drawn from."""

_EXAMPLES = 3
"""Aligned rows shown of each source."""

_ADDED: dict[str, Any] = {"licenses": {}, "lost": {}, "lost_bytes": {}, "warnings": [], "heldout_share_cut": {}}
"""Keys that summaries of earlier versions do not have."""


def write_report(out: str | Path) -> Path:
    """Write OUT/report.md and its pictures under OUT/report/.

    Raises:
        UserError: nothing finished there.
    """
    layout = Layout(out)
    if not layout.summary.exists():
        raise UserError(f"{out}: no summary.json: the preparation did not finish (`lst prep run`)")
    summary = _ADDED | json.loads(layout.summary.read_text())
    pictures = layout.out / "report"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    lines = ["# Data preparation", "", f"Plan `{summary['plan']}`, folder `{layout.out}`.", ""]
    lines += _sets(layout, summary) + _sources(summary) + _rejections(summary, pictures)
    for name in ("speech", "heldout-speech"):
        if (layout.out / name / MANIFEST).exists():
            lines += _speech(ShardSet.open(layout.out / name), name, pictures)
    layout.report.write_text("\n".join(lines) + "\n")
    return layout.report


def _sets(layout: Layout, summary: dict[str, Any]) -> list[str]:
    lines = ["## Shard sets", "", "| set | documents | hours | units | text pieces | shards | codec | tokenizer |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in SETS:
        if name not in summary["sets"]:
            continue
        manifest = json.loads((layout.out / name / MANIFEST).read_text())
        totals, codec = manifest["totals"], codec_of(manifest)
        seconds = totals["frames"] / float(codec.rate) if codec else 0
        lines.append(
            f"| {name} | {manifest['documents']:,} | {_hours(seconds)} | "
            f"{totals['frames']:,} | {totals['pieces']:,} | {manifest['shards']:,} | "
            f"{f'{codec} ({codec.fingerprint})' if codec else '-'} | "
            f"{manifest['tokenizer']['fingerprint']} |"
        )
    return [*lines, ""]


def _cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}" if seconds else "-"


def _sources(summary: dict[str, Any]) -> list[str]:
    lines = [
        "## Sources",
        "",
        "| set / source | split | licence | documents | hours | words | share | words a second | pieces a word |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    pieces: dict[str, float] = {}
    for name, totals in summary["sources"].items():
        of_set = name.partition("/")[0]
        pieces[of_set] = pieces.get(of_set, 0) + totals["pieces"]
    for name, totals in sorted(summary["sources"].items()):
        of_set = name.partition("/")[0]
        speed = f"{totals['words'] / totals['seconds']:.2f}" if totals["seconds"] else "-"
        licences = ", ".join(sorted(licence or "not stated" for licence in summary["licenses"].get(name, {})))
        lines.append(
            f"| {name} | {'heldout' if of_set.startswith('heldout') else 'train'} | {_cell(licences)} | "
            f"{totals['documents']:,.0f} | {_hours(totals['seconds'])} | {totals['words']:,.0f} | "
            f"{totals['pieces'] / max(pieces[of_set], 1):.1%} | {speed} | "
            f"{totals['pieces'] / max(totals['words'], 1):.2f} |"
        )
    alike, compared = summary["units_like_fp32"]
    if compared:
        lines += ["", f"{alike / compared:.1%} of {compared:,} units looked at are those that fp32 gives."]
    return [*lines, ""]


def _rejections(summary: dict[str, Any], pictures: Path) -> list[str]:
    held = (
        f"{summary['heldout_sentences']:,} sentences are held out; "
        f"{summary['heldout_sentences_removed_from_text']:,} were cut out of training text."
    )
    lines = ["## What was not used", "", held, ""]
    for source, share in summary["heldout_share_cut"].items():
        if share:
            lines += [f"Of the text of {source or 'no source'}, {share:.4%} was cut.", ""]
    lines += [line for warning in summary["warnings"] for line in (f"**{_cell(warning)}**", "")]
    if not summary["rejected"]:
        return [*lines, "Nothing was rejected.", ""]
    lines += ["| reason | count | meaning | for instance |", "|---|---|---|---|"]
    for reason, count in sorted(summary["rejected"].items(), key=lambda pair: -pair[1]):
        example = summary["rejection_examples"][reason][0]
        detail = f"{Path(example['id']).name if '/' in example['id'] else example['id']}: {example['detail']}"
        shown = _cell(detail)
        lines.append(
            f"| {reason} | {count:,} | {REASONS[reason]} | {shown[:117] + '...' if len(shown) > 120 else shown} |"
        )
    lines += ["", "| source | rejected | used | lost |", "|---|---|---|---|"]
    for source, lost in sorted(summary["lost"].items(), key=lambda pair: -pair[1]["share"]):
        lines.append(f"| {_cell(source) or '-'} | {lost['rejected']:,} | {lost['used']:,} | {lost['share']:.1%} |")
    for source, size in summary["lost_bytes"].items():
        lines += ["", f"{size:,} bytes of files of {source or 'no source'} that break off were not read."]
    draw_rejections(pictures / "rejections.png", summary["rejected_by_source"])
    lines += ["", "![what was rejected, and why, by source](report/rejections.png)"]
    if summary["audio_changes"]:
        changes = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in summary["audio_changes"].items())
        lines += ["", f"Audio was changed on the way in: {changes}."]
    return [*lines, ""]


def _speech(shards: ShardSet, name: str, pictures: Path) -> list[str]:
    """One section a source: numbers, histograms, and rows that a person can look at."""
    assert shards.codec is not None, "a set of speech"
    rate = float(shards.codec.rate)
    by_source: dict[str, list[Document]] = {}
    for index in _sample(len(shards)):
        document = shards.get(index)
        by_source.setdefault(document.source, []).append(document)
    lines: list[str] = []
    for number, (source, documents) in enumerate(sorted(by_source.items(), key=lambda pair: -len(pair[1]))):
        words = np.concatenate([np.diff(d.word_frames, axis=1)[:, 0] for d in documents])
        pauses = np.concatenate([_pauses(d) for d in documents])
        scores = np.concatenate([d.word_scores for d in documents])
        rates = np.array([len(d.word_frames) * rate / len(d.speech_ids) for d in documents])
        used = np.bincount(np.concatenate([d.speech_ids for d in documents]))
        shares = used[used > 0] / used.sum()
        perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
        histogram = pictures / f"{name}-{number}.png"
        draw_histograms(histogram, words, pauses, scores[np.isfinite(scores)], rates, rate)
        lines += [
            f"## {name}, {source or 'no source'}: {len(documents):,} documents looked at",
            "",
            f"Words last {words.mean():.1f} frames on average, pauses {pauses.mean() if len(pauses) else 0:.1f} (SPEC: "
            f"5.8 and 3.7); a word with its pause {(words.sum() + pauses.sum()) / len(words):.1f} (9.4). "
            f"{(used > 0).sum()} codebook entries occur, perplexity {perplexity:.0f}.",
            "",
            f"![patch lengths, scores and speaking rates](report/{histogram.name})",
            "",
        ]
        for example, document in enumerate(documents[:: max(len(documents) // _EXAMPLES, 1)][:_EXAMPLES]):
            file = pictures / f"{name}-{number}-example-{example}.png"
            draw_aligned_row(file, document, rate)
            speaker = f" by {document.speaker}" if document.speaker else ""
            lines += [f"`{document.id}`{speaker}: {document.text[:200]}", ""]
            lines += [f"![{document.id}](report/{file.name})", ""]
    return lines


def _sample(documents: int) -> list[int]:
    """Evenly spread document numbers."""
    return [int(i) for i in np.unique(np.linspace(0, documents - 1, min(_SAMPLE, documents)).astype(int))]


def _pauses(document: Document) -> np.ndarray:
    """Lengths in frames of the silences of a document, leading and trailing ones included."""
    spans = document.word_frames
    edges = np.concatenate([[0], spans.ravel(), [len(document.speech_ids)]])
    pauses = np.diff(edges)[::2]
    return pauses[pauses > 0]
