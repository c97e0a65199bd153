"""What a preparation's folder holds, finished or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst_prep.items import Receipts
from lst_prep.layout import ItemTable, Layout, fingerprint_of
from lst_prep.summary import Summary, read_lines
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.errors import UserError
from megatron_lst.files import read_json

_ADDED: dict[str, Any] = {
    "languages": {},
    "licenses": {},
    "lost": {},
    "lost_bytes": {},
    "warnings": [],
    "heldout_share_cut": {},
}
"""Keys that summaries of earlier versions do not have."""

_STAGES = ("cut", "units", "align", "shards", "text", "import-check", "import-shards")
"""Stages whose receipts say what was used and what was not."""


@dataclass(frozen=True)
class State:
    """Attributes:
    layout: of the folder.
    plan: plan.json.
    summary: summary.json, or what the receipts that are there come to.
    missing: what is not done yet, one sentence each; empty: the preparation is finished.
    """

    layout: Layout
    plan: dict[str, Any]
    summary: dict[str, Any]
    missing: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.plan)

    @property
    def imported(self) -> bool:
        return "import" in self.plan


def read_state(out: str | Path) -> State:
    """What is there.

    Raises:
        UserError: no preparation at all.
    """
    layout = Layout(out)
    plan = read_json(layout.plan)
    if not isinstance(plan, dict):
        raise UserError(f"{out}: no preparation and no import (there is no plan.json); name the `out` of one")
    summary = read_json(layout.summary)
    if summary is not None:
        return State(layout, plan, _ADDED | summary)
    return State(layout, plan, _from_receipts(layout, plan), _missing(layout, plan))


def _from_receipts(layout: Layout, plan: dict[str, Any]) -> dict[str, Any]:
    summary = Summary()
    if layout.manifest_rejections.exists():
        for line in read_lines(layout.manifest_rejections):
            summary.reject(line)
    for stage in _STAGES:
        receipts = Receipts(layout.work, stage, fingerprint_of(plan))
        for item in receipts.items():
            summary.add(receipts.read(item) or {})
    heldout = len(HeldOut.load(layout.heldout)) if layout.heldout.exists() else 0
    # What of a source is used is known at the end.
    return summary.content(fingerprint_of(plan), {}, heldout, 1.0) | {"lost": {}, "warnings": []}


def _missing(layout: Layout, plan: dict[str, Any]) -> list[str]:
    found = ["The preparation is not finished: the same command goes on with it. What follows is what there is."]
    if "import" in plan:
        return found
    if not layout.tokenizer.exists():
        return [*found, "The manifests are not read yet (`lst prep manifest`)."]
    cuts = layout.recordings.items.exists()
    tables: list[tuple[str, ItemTable]] = [("cut", layout.recordings)] if cuts else []
    tables += [("units", layout.pieces), ("align", layout.pieces)] if layout.pieces.items.exists() else []
    for stage, table in tables:
        done = len(Receipts(layout.work, stage, fingerprint_of(plan)).items())
        if done < len(table):
            found.append(f"{stage}: {done:,} of {len(table):,} items are done (`lst prep {stage}`).")
    if len(tables) > cuts and len(layout.pieces) and not layout.codebook.exists():
        found.append("There is no codebook yet (`lst prep codebook`).")
    return [*found, "The shard sets are not joined yet (`lst prep shards`)."]
