"""What an import did, as a page for people."""

from typing import Any

from lst_prep.layout import Layout
from lst_prep.rejection import REASONS
from megatron_lst.documents.codec import Codec


def write_import_report(layout: Layout, codec: Codec, summary: dict[str, Any]) -> None:
    """Write OUT/report.md."""
    lines = ["# Import of speech tokens", "", f"Plan `{summary['plan']}`, codec {codec} (`{codec.fingerprint}`).", ""]
    for what, how in (("Tokens are made by", codec.encoder), ("Audio is made by", codec.decoder)):
        lines += [f"{what} {how}.", ""] if how else []
    lines += [
        "| set / source | documents | hours | frames | words | text pieces | licences |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, totals in sorted(summary["sources"].items()):
        lines.append(
            f"| {name} | {totals['documents']:,.0f} | {totals['seconds'] / 3600:,.2f} | {totals['units']:,.0f} | "
            f"{totals['words']:,.0f} | {totals['pieces']:,.0f} | {_licences(summary, name)} |"
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


def _licences(summary: dict[str, Any], name: str) -> str:
    return ", ".join(sorted(text or "not stated" for text in summary["licenses"].get(name, {})))
