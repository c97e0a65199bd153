"""What a preparation came to: `summary.json`, the same for a terminal, and what shard sets say of their licences."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_EXAMPLES = 5
_LINES = 40
"""Reasons that the terminal shows, the most frequent ones."""


class Summary:
    """Counts over the receipts of all items."""

    def __init__(self) -> None:
        self.sources: dict[str, dict[str, float]] = {}
        self.languages: dict[str, dict[str, float]] = {}
        self.licenses: dict[str, Counter[str]] = {}
        self._rejected: Counter[str] = Counter()
        self._by_source: dict[str, Counter[str]] = {}
        self._examples: dict[str, list[dict[str, str]]] = {}
        self._first: dict[str, dict[str, str]] = {}
        self._changes: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._lost_bytes: Counter[str] = Counter()
        self._cut: dict[str, np.ndarray] = {}
        self._alike = np.zeros(2, np.int64)
        self._removed = 0

    def reject(self, line: dict[str, Any]) -> None:
        """Count one rejection: `id`, `source`, `reason`, `detail`, `lost_bytes` where a file broke off, `times` where
        it stands for more than itself."""
        reason, source, times = line["reason"], line["source"], int(line.get("times", 1))
        self._rejected[reason] += times
        self._by_source.setdefault(source, Counter())[reason] += times
        if lost := int(line.get("lost_bytes") or 0):
            self._lost_bytes[source] += lost
        if len(self._examples.setdefault(reason, [])) < _EXAMPLES:
            self._examples[reason].append(line)
        self._first.setdefault(f"{source}\n{reason}", line)

    def add(self, result: dict[str, Any]) -> None:
        """Count what one item's receipt says."""
        for rejection in result.get("rejections", []):
            self.reject(rejection)
        self._changes.update(result.get("changes", {}))
        self._used.update(result.get("used", {}))
        self._alike += result.get("like_fp32", [0, 0])
        self._removed += result.get("heldout_sentences_removed", 0)
        for source, counts in result.get("cut", {}).items():
            self._cut[source] = self._cut.get(source, np.zeros(2, np.int64)) + counts
        for what, found in ((self.sources, "sources"), (self.languages, "languages")):
            for name, totals in result.get(found, {}).items():
                mine = what.setdefault(name, dict.fromkeys(totals, 0))
                for key, value in totals.items():
                    mine[key] += value
        for name, licenses in result.get("licenses", {}).items():
            self.licenses.setdefault(name, Counter()).update(licenses)

    def about(self, name: str, attributions: dict[str, str]) -> dict[str, Any]:
        """What the manifest of the set `name` says of its sources: `licenses` and `attributions`, for people and for
        the cards of models."""
        found: dict[str, set[str]] = {}
        for key, licenses in self.licenses.items():
            of_set, _, source = key.partition("/")
            if of_set == name:
                found.setdefault(source, set()).update(licenses)
        stated = {text or f"not stated ({source})" for source, texts in found.items() for text in texts}
        credits = [
            f"{source or 'no source'}: {', '.join(sorted(text or 'licence not stated' for text in texts))}"
            + (f"; {attributions[source]}" if source in attributions else "")
            for source, texts in sorted(found.items())
        ]
        return {"licenses": sorted(stated), "attributions": credits}

    def content(
        self, plan: str, sets: dict[str, dict[str, Any]], heldout: int, warn_lost: float, warn_pieces: float = 0.0
    ) -> dict[str, Any]:
        """`summary.json`.

        Args:
            sets: the manifests by set.
            heldout: sentences that are held out.
            warn_lost: a source that loses a larger share is in `warnings`.
            warn_pieces: so is a language whose words take more text pieces each; 0: none is.
        """
        lost, warnings = {}, self._costly(warn_pieces)
        for source, counts in self._by_source.items():
            if source not in self._used and any(name.partition("/")[2] == source for name in self.sources):
                continue  # receipts of an earlier version do not say what was used
            rejected = counts.total() - counts["ignored_file"]
            share = rejected / max(rejected + self._used[source], 1)
            lost[source] = {"rejected": rejected, "used": self._used[source], "share": round(share, 6)}
            if share > warn_lost:
                warnings.append(_warning(source, counts, lost[source]))
        return {
            "plan": plan,
            "sets": {name: {"documents": m["documents"], "totals": m["totals"]} for name, m in sets.items()},
            "sources": self.sources,
            "languages": self.languages,
            "licenses": {name: dict(counts) for name, counts in self.licenses.items()},
            "rejected": dict(self._rejected),
            "rejected_by_source": {source: dict(counts) for source, counts in self._by_source.items()},
            "rejection_examples": self._examples,
            "first_rejections": list(self._first.values()),
            "lost": lost,
            "lost_bytes": dict(self._lost_bytes),
            "warnings": warnings,
            "audio_changes": dict(self._changes),
            "units_like_fp32": self._alike.tolist(),
            "heldout_sentences": heldout,
            "heldout_sentences_removed_from_text": self._removed,
            "heldout_share_cut": {
                source: round(int(cut) / int(total), 9) for source, (cut, total) in self._cut.items() if total
            },
        }

    def _costly(self, most: float) -> list[str]:
        """A warning for each language of a set whose words take more pieces than `most`."""
        return [
            f"{name}: {totals['pieces'] / totals['words']:.1f} text pieces a word (warn_pieces: {most:g}); a tokenizer "
            f"that has pieces for this language would make its text shorter"
            for name, totals in self.languages.items()
            if most and totals["words"] and totals["pieces"] > most * totals["words"]
        ]


def _warning(source: str, reasons: Counter[str], lost: dict[str, Any]) -> str:
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(4))
    total = lost["rejected"] + lost["used"]
    return f"{source or 'no source'} lost {lost['share']:.1%}, {lost['rejected']:,} of {total:,}: {why}"


def _short(line: dict[str, str]) -> str:
    name = Path(line["id"]).name if "/" in line["id"] else line["id"]
    shown = f"{name}: {line['detail']}" if line["detail"] else name
    shown = " ".join(shown.split())
    return shown if len(shown) <= 160 else shown[:157] + "..."


def lost_lines(summary: dict[str, Any]) -> list[str]:
    """One line for each source and reason of rejections: count, share of the source, an example; then warnings."""
    first = {(line["source"], line["reason"]): line for line in summary["first_rejections"]}
    rows = [
        (count, reason, source)
        for source, counts in summary["rejected_by_source"].items()
        for reason, count in counts.items()
    ]
    rows.sort(key=lambda row: (-row[0], row[1:]))
    lines = []
    for count, reason, source in rows[:_LINES]:
        lost, of = summary["lost"].get(source), f"of {source or 'no source'}"
        if lost is not None and reason != "ignored_file":
            of = f"{count / max(lost['rejected'] + lost['used'], 1):.1%} {of}"
        lines.append(f"rejected {count:>8,} as {reason} ({of}), such as {_short(first[source, reason])}")
    if len(rows) > _LINES:
        lines.append(f"and {len(rows) - _LINES} more reasons and sources: see summary.json")
    for source, size in summary["lost_bytes"].items():
        lines.append(f"{source}: {size:,} bytes of files that break off were not read")
    lines += [
        f"{source}: {share:.4%} of the text was cut, for it is held out"
        for source, share in summary["heldout_share_cut"].items()
        if share
    ]
    return lines + [f"WARNING: {warning}" for warning in summary["warnings"]]


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The objects of a JSONL file of our own."""
    with path.open(encoding="utf-8") as log:
        for line in log:
            yield json.loads(line)
