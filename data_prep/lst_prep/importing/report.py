"""What an import did: OUT/summary.json, and a page for people."""

from collections import Counter
from typing import Any

from lst_prep.importing.config import ImportConfig
from lst_prep.layout import Layout
from lst_prep.rejection import REASONS
from megatron_lst.documents.codec import Codec


def summarise(
    config: ImportConfig,
    plan: str,
    manifests: dict[str, dict[str, Any]],
    checked: list[dict[str, Any]],
    written: list[dict[str, Any]],
) -> dict[str, Any]:
    """The keys of a preparation's summary, and the codec."""
    rejected: Counter[str] = Counter()
    by_source: dict[str, Counter[str]] = {}
    examples: dict[str, list[dict[str, str]]] = {}
    sources: dict[str, dict[str, float]] = {}
    for source, result in [(r["source"], r) for r in checked] + [("", r) for r in written]:
        rejected.update(result["bad"])
        for line in result["rejections"]:
            if len(examples.setdefault(line["reason"], [])) < 5:
                examples[line["reason"]].append(line)
            source = source or line["source"]
        if result["bad"]:
            by_source.setdefault(source, Counter()).update(result["bad"])
        for name, totals in result.get("sources", {}).items():
            mine = sources.setdefault(name, dict.fromkeys(totals, 0))
            for key, value in totals.items():
                mine[key] += value
    return {
        "plan": plan,
        "codec": config.codec.codec().to_plain(),
        "records": sum(result["good"] + sum(result["bad"].values()) for result in checked),
        "sets": {name: {"documents": m["documents"], "totals": m["totals"]} for name, m in manifests.items()},
        "sources": sources,
        "rejected": dict(rejected),
        "rejected_by_source": {source: dict(counts) for source, counts in by_source.items()},
        "rejection_examples": examples,
    }


def write_import_report(layout: Layout, codec: Codec, summary: dict[str, Any]) -> None:
    """Write OUT/report.md."""
    lines = ["# Import of speech tokens", "", f"Plan `{summary['plan']}`, codec {codec} (`{codec.fingerprint}`).", ""]
    for what, how in (("Tokens are made by", codec.encoder), ("Audio is made by", codec.decoder)):
        lines += [f"{what} {how}.", ""] if how else []
    lines += ["| set / source | documents | hours | frames | words | text pieces |", "|---|---|---|---|---|---|"]
    for name, totals in sorted(summary["sources"].items()):
        lines.append(
            f"| {name} | {totals['documents']:,.0f} | {totals['seconds'] / 3600:,.2f} | {totals['units']:,.0f} | "
            f"{totals['words']:,.0f} | {totals['pieces']:,.0f} |"
        )
    lines += ["", f"Records read: {summary['records']:,}.", "", "## What was not used", ""]
    if not summary["rejected"]:
        lines += ["Nothing was rejected.", ""]
    else:
        lines += ["| reason | count | meaning | for instance |", "|---|---|---|---|"]
    for reason, count in sorted(summary["rejected"].items(), key=lambda pair: -pair[1]):
        example = next(iter(summary["rejection_examples"].get(reason, [])), {"id": "", "detail": ""})
        shown = f"{example['id']}: {example['detail']}".replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {reason} | {count:,} | {REASONS[reason]} | {shown[:160]} |")
    layout.report.write_text("\n".join(lines) + "\n")
