"""The tables of a preparation's page: sets, sources, what was not used, configuration."""

import json
from pathlib import Path
from typing import Any

import yaml

from lst_prep.languages.tags import ENGLISH
from lst_prep.rejection import REASONS
from lst_prep.report.state import State
from megatron_lst.documents.codec import codec_of
from megatron_lst.documents.format import MANIFEST
from megatron_lst.pages import Bar, Bars, Listing, Paragraph, Table
from megatron_lst.pages.blocks import Block


def facts(state: State) -> list[tuple[str, str]]:
    """The large numbers at the top."""
    sources, rejected = state.summary["sources"], sum(state.summary["rejected"].values())
    total = {key: sum(source[key] for source in sources.values()) for key in ("documents", "seconds", "words")}
    found = [(f"{total['documents']:,.0f}", "documents"), (f"{total['words']:,.0f}", "words")]
    if total["seconds"]:
        found.insert(0, (f"{total['seconds'] / 3600:,.2f}", "hours of speech"))
    return [*found, (f"{len({name.partition('/')[2] for name in sources})}", "sources"), (f"{rejected:,}", "rejected")]


def sets(state: State) -> list[Block]:
    """One row a shard set, and the codec of an import."""
    rows = []
    for name in state.summary["sets"]:
        manifest = json.loads((state.layout.out / name / MANIFEST).read_text())
        totals, codec = manifest["totals"], codec_of(manifest)
        seconds = totals["frames"] / float(codec.rate) if codec else 0
        rows.append(
            [
                name,
                f"{manifest['documents']:,}",
                _hours(seconds),
                f"{totals['frames']:,}",
                f"{totals['pieces']:,}",
                f"{manifest['shards']:,}",
                f"{codec} ({codec.fingerprint})" if codec else "-",
                manifest["tokenizer"]["fingerprint"],
            ]
        )
    head = ["set", "documents", "hours", "frames", "text pieces", "shards", "codec", "tokenizer"]
    found: list[Block] = [Table(head, rows)] if rows else []
    codec = state.summary.get("codec", {})
    for what, how in (("Tokens are made by", codec.get("encoder")), ("Audio is made by", codec.get("decoder"))):
        found += [Paragraph(f"{what} {how}.")] if how else []
    return found


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}" if seconds else "-"


def sources(state: State) -> list[Block]:
    """One row a source of a set."""
    summary, rows = state.summary, []
    pieces: dict[str, float] = {}
    for name, totals in summary["sources"].items():
        of_set = name.partition("/")[0]
        pieces[of_set] = pieces.get(of_set, 0) + totals["pieces"]
    for name, totals in sorted(summary["sources"].items()):
        of_set = name.partition("/")[0]
        speed = f"{totals['words'] / totals['seconds']:.2f}" if totals["seconds"] else "-"
        licences = ", ".join(sorted(licence or "not stated" for licence in summary["licenses"].get(name, {})))
        rows.append(
            [
                name,
                "heldout" if of_set.startswith("heldout") else "train",
                licences,
                f"{totals['documents']:,.0f}",
                _hours(totals["seconds"]),
                f"{totals['words']:,.0f}",
                f"{totals['pieces'] / max(pieces[of_set], 1):.1%}",
                speed,
                f"{totals['pieces'] / max(totals['words'], 1):.2f}",
            ]
        )
    head = ["set / source", "split", "licence", "documents", "hours", "words", "share", "words a second"]
    found: list[Block] = [Table([*head, "pieces a word"], rows)] if rows else []
    alike, compared = summary["units_like_fp32"]
    if compared:
        found.append(Paragraph(f"{alike / compared:.1%} of {compared:,} units looked at are those that fp32 gives."))
    return found


def languages(state: State) -> list[Block]:
    """One row a language of a set, where there is more than English."""
    rows = [
        [
            name,
            f"{totals['documents']:,.0f}",
            _hours(totals["seconds"]),
            f"{totals['words']:,.0f}",
            f"{totals['words'] / totals['seconds']:.2f}" if totals["seconds"] else "-",
            f"{totals['pieces'] / max(totals['words'], 1):.2f}",
        ]
        for name, totals in sorted(state.summary["languages"].items())
    ]
    if all(name.partition("/")[2] == ENGLISH for name in state.summary["languages"]):
        return []
    head = ["set / language", "documents", "hours", "words", "words a second", "pieces a word"]
    note = "A character of a script without spaces counts as a part of a word: Chinese 5/6, kana 1/2, Thai 1/3."
    return [Table(head, rows), Paragraph(note)]


def rejections(state: State) -> list[Block]:
    """Warnings, one row a reason, what each source lost."""
    summary = state.summary
    found: list[Block] = [Paragraph(warning, warning=True) for warning in summary["warnings"]]
    if "records" in summary:
        found.append(Paragraph(f"Records read: {summary['records']:,}."))
    else:
        found.append(
            Paragraph(
                f"{summary['heldout_sentences']:,} sentences are held out; "
                f"{summary['heldout_sentences_removed_from_text']:,} were cut out of training text."
            )
        )
    for source, share in summary["heldout_share_cut"].items():
        found += [Paragraph(f"Of the text of {source or 'no source'}, {share:.4%} was cut.")] if share else []
    if not summary["rejected"]:
        return [*found, Paragraph("Nothing was rejected.")]
    rows = []
    for reason, count in sorted(summary["rejected"].items(), key=lambda pair: -pair[1]):
        example = next(iter(summary["rejection_examples"].get(reason, [])), None)
        shown = f"{short_name(example['id'])}: {example['detail']}" if example else ""
        meaning = REASONS.get(reason, "")
        rows.append([reason, f"{count:,}", meaning, f"{shown[:117]}..." if len(shown) > 120 else shown])
    found += [Table(["reason", "count", "meaning", "for instance"], rows), _bars(summary["rejected_by_source"])]
    lost = [
        [source or "-", f"{part['rejected']:,}", f"{part['used']:,}", f"{part['share']:.1%}"]
        for source, part in sorted(summary["lost"].items(), key=lambda pair: -pair[1]["share"])
    ]
    found.append(Table(["source", "rejected", "used", "lost"], lost))
    for source, size in summary["lost_bytes"].items():
        text = f"{size:,} bytes of files of {source or 'no source'} that break off were not read."
        found.append(Paragraph(text))
    if summary["audio_changes"]:
        changes = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in summary["audio_changes"].items())
        found.append(Paragraph(f"Audio was changed on the way in: {changes}."))
    return found


def short_name(name: str) -> str:
    """The last part of an id that is a path."""
    return Path(name).name if "/" in name else name


def _bars(by_source: dict[str, dict[str, int]]) -> Bars:
    sources = sorted(by_source, key=lambda source: -sum(by_source[source].values()))
    totals: dict[str, int] = {}
    for counts in by_source.values():
        for reason, count in counts.items():
            totals[reason] = totals.get(reason, 0) + count
    bars = [
        Bar(reason, [(source, by_source[source].get(reason, 0)) for source in sources])
        for reason in sorted(totals, key=lambda reason: (-totals[reason], reason))
    ]
    return Bars("What was rejected, and why, by source", sources, bars)


def configuration(state: State) -> list[Block]:
    """What the results depend on: the plan."""
    choices: Any = state.plan.get("import" if state.imported else "config") or {}
    inputs = "\n".join(f"{path}  {what}" for path, what in list(state.plan.get("inputs", {}).items())[:200])
    found: list[Block] = [Listing("Configuration", yaml.safe_dump(choices, sort_keys=False, allow_unicode=True))]
    return [*found, *([Listing("Inputs, with their hashes or sizes", inputs)] if inputs else [])]
