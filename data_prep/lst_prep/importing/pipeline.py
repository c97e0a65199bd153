"""`lst prep import`: check every record, then write shard sets and OUT/train.yaml. Resumable anywhere.

The output folder is laid out as a preparation's: receipts under `work/`, a plan that it belongs to, a folder for each
set. Slices of items (`--items i/n`) check first; the slices that run when all is checked write.
"""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from lst_prep.engine import lock, run_stage
from lst_prep.importing.config import ImportConfig
from lst_prep.importing.readers import reader_of
from lst_prep.importing.records import Part
from lst_prep.importing.stages import CHECK, SHARDS, Item, check_factory, shards_factory
from lst_prep.items import Receipts, Stage, full_disk_is_the_users
from lst_prep.layout import Layout, compare_plan, hash_of
from lst_prep.models import require_same
from lst_prep.publishing import publish
from lst_prep.reading import Inputs
from lst_prep.report import write_report
from lst_prep.stages import arrays, save_arrays
from lst_prep.summary import Summary
from lst_prep.tokenizer import load_tokenizer
from lst_prep.training_lines import vocabulary_of
from megatron_lst.config.paths import absolute
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.writing import merge_parts
from megatron_lst.errors import UserError
from megatron_lst.files import read_json, write_bytes, write_text

ENOUGH = 100
"""Records of a source from which on a share of them says something."""


def run_import(config: ImportConfig, quiet: bool = False, part: str | None = None) -> dict[str, Any] | None:
    """Do all that is missing.

    Args:
        part: `i/n`: only this slice of the items of each stage.

    Returns:
        The summary, also in OUT/summary.json; None: a slice.

    Raises:
        UserError: columns or files that are not there, records that are wrong beyond `checks`, another plan in the
            folder, no space left.
    """
    layout = Layout(config.out)
    with lock(layout.lock, shared=part is not None), full_disk_is_the_users():
        return _Import(absolute(config), layout, quiet, part).run()


class _Import:
    def __init__(self, config: ImportConfig, layout: Layout, quiet: bool, part: str | None) -> None:
        self.config, self.layout, self.quiet, self.part = config, layout, quiet, part
        self.codec = config.codec.codec()
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.items = self._divided()
        self.plan = compare_plan(layout, plan_of(config))
        there = read_json(layout.tokenizer)
        if there is not None:
            redo = [layout.tokenizer, layout.work / SHARDS]
            found = self.tokenizer.info.fingerprint
            require_same("tokenizer", config.tokenizer, found, str(there["fingerprint"]), redo)

    def run(self) -> dict[str, Any] | None:
        self._stage(CHECK, check_factory)
        checked = self._results(CHECK)
        if None in checked:
            print("import: this slice is checked; run it again when every slice is, to write its documents", flush=True)
            return None
        found = [result for result in checked if result is not None]
        judge(self.config, found)
        if not self.layout.tokenizer.exists():  # written last
            self._hold_out(found)
            self._mark_duplicates()
            info = {"spec": self.config.tokenizer, "path": self.tokenizer.path, **asdict(self.tokenizer.info)}
            write_bytes(self.layout.tokenizer, json.dumps(info, indent=1).encode())
        self._stage(SHARDS, shards_factory)
        if self.part is not None:
            return None
        written = [result for result in self._results(SHARDS) if result is not None]
        counted = Summary()
        for result in [*found, *written]:
            counted.add(result)
        manifests = self._merge(written, counted)
        summary = {
            **counted.content(self.plan, manifests, len(HeldOut.load(self.layout.heldout)), self.config.warn_lost),
            "codec": self.codec.to_plain(),
            "records": sum(result["good"] + sum(result["bad"].values()) for result in found),
        }
        write_bytes(self.layout.summary, json.dumps(summary, indent=1, ensure_ascii=False).encode())
        write_report(self.layout.out)
        write_text(self.layout.out / "train.yaml", train_yaml(self.config, self.layout, self.tokenizer.info, manifests))
        if self.config.publish:
            publish(self.layout.out, self.config.publish, self.config.jobs, self.quiet)
        return summary

    def _divided(self) -> list[Item]:
        """The items of work, divided once; what the sources hold later has to be the same, but for what is given up.

        Raises:
            UserError: files came, went or changed since.
        """
        table, inputs = self.layout.work / "import-items.json", self.layout.inputs(self.config)
        if self.part is None or not table.exists():
            found = divide(self.config, inputs)
            if not table.exists():
                plain = [[item.source, [list(vars(part).values()) for part in item.parts]] for item in found]
                write_text(table, json.dumps(plain))
        there = [Item(source, tuple(Part(*part) for part in parts)) for source, parts in json.loads(table.read_text())]
        if self.part is None:
            old, new = ({p for item in items for p in item.parts} for items in (there, found))
            changed = [p.path for p in sorted(old ^ new, key=repr) if not inputs.is_given_up(p.path)]
            if changed:
                raise UserError(
                    f"{self.layout.out}: the sources are no longer what they were: {changed[0]} and "
                    f"{len(set(changed)) - 1} other files came, went or changed; choose another `out`, or remove it"
                )
        return there

    def _stage(self, name: str, factory: Any) -> None:
        jobs = self.config.jobs
        run_stage(
            Stage(name, len(self.items), factory, (self.config, self.items)),
            self.layout.work,
            self.plan,
            jobs,
            self.part,
            self.quiet,
            max_unreadable=self.config.reading.max_unreadable,
        )

    def _results(self, name: str) -> list[dict[str, Any] | None]:
        receipts = Receipts(self.layout.work, name, self.plan)
        return [receipts.read(item) for item in range(len(self.items))]

    def _hold_out(self, checked: list[dict[str, Any]]) -> None:
        heldout, inputs = HeldOut(), self.layout.inputs(self.config)
        for path in self.config.heldout:
            with inputs.local(path) as file:
                heldout.update(HeldOut.load(file))
        for item, result in enumerate(checked):
            if result["heldout"]:
                with self.layout.item(CHECK, item, ".jsonl").open() as lines:
                    for line in lines:
                        heldout.add(json.loads(line))
        heldout.save(self.layout.heldout)

    def _mark_duplicates(self) -> None:
        """Which records are the first of their id in their set. Takes 8 bytes of memory a record."""
        for source in range(len(self.config.sources)):
            items = [number for number, item in enumerate(self.items) if item.source == source]
            hashes = [arrays(self.layout.item(CHECK, item, ".npz"))["hashes"] for item in items]
            _, first = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_index=True)
            keep = np.zeros(sum(map(len, hashes)), bool)
            keep[first] = True
            at = 0
            for item, mine in zip(items, hashes, strict=True):
                if not keep[at : at + len(mine)].all():
                    save_arrays(self.layout.item("import-keep", item, ".npz"), {"keep": keep[at : at + len(mine)]})
                at += len(mine)

    def _merge(self, written: list[dict[str, Any]], summary: Summary) -> dict[str, dict[str, Any]]:
        names = [f"{split}{source.name}{kind}" for source in self.config.sources
                 for split in ("", "heldout-") for kind in ("", "-untranscribed")]  # fmt: skip
        manifests: dict[str, dict[str, Any]] = {}
        summary = Summary()
        for result in written:
            summary.add({"licenses": result.get("licenses", {})})
        for name in names:
            parts = [
                self.layout.part(name, item).name for item, result in enumerate(written) if result["counts"].get(name)
            ]
            if parts:
                root = self.layout.out / name
                about = {"plan": self.plan, **summary.about(name, self.config.attributions)}
                manifests[name] = merge_parts(
                    root, parts, "speech", self.tokenizer.info, self.codec, about, segments=True
                )
        if not manifests:
            raise UserError(f"{self.layout.out}: no document at all: every record was rejected")
        return manifests


def divide(config: ImportConfig, inputs: Inputs) -> list[Item]:
    """Items of about `jobs.item_megabytes`, each of one source.

    Raises:
        UserError: a source has no files, or no such columns.
        CannotRead: a file, now.
    """
    items: list[Item] = []
    for number, source in enumerate(config.sources):
        if not source.columns.tokens:
            raise UserError(f"source {source.name!r}: columns.tokens: name the column that holds the tokens")
        parts, size = list[Part](), 0
        for part in reader_of(source.format).parts(source, inputs):
            if parts and size + part.size > config.jobs.item_megabytes * 1e6:
                items.append(Item(number, tuple(parts)))
                parts, size = [], 0
            parts.append(part)
            size += part.size
        if parts:
            items.append(Item(number, tuple(parts)))
    if not items:
        raise UserError("nothing to import: the sources hold no record")
    return items


def plan_of(config: ImportConfig) -> dict[str, Any]:
    """Everything that the results depend on, but what the sources hold."""
    choices = asdict(config)
    for name in ("out", "publish", "jobs", "reading", "give_up", "attributions", "warn_lost"):
        choices.pop(name)
    for source in choices["sources"]:
        for name in ("weight", "untranscribed_weight"):
            source.pop(name)
    opener = Layout(config.out).inputs(config)
    inputs = {path: hash_of(path, "heldout", opener) for path in config.heldout}
    return {"version": 1, "import": json.loads(json.dumps(choices)), "inputs": inputs}


def judge(config: ImportConfig, checked: list[dict[str, Any]]) -> None:
    """Refuse to write anything of sources whose records are wrong as a whole.

    Raises:
        UserError: names how many there are of each mistake, and files and rows of the first.
    """
    for source in config.sources:
        mine = [result for result in checked if result["source"] == source.name]
        good, bad = sum(result["good"] for result in mine), Counter[str]()
        for result in mine:
            bad.update(result["bad"])
        total, wrong = good + bad.total(), bad.total()
        if good and (total < ENOUGH or wrong <= config.checks.max_rejected * total):
            continue
        if not total:
            raise UserError(f"source {source.name!r}: holds no record")
        found = [line for result in mine for line in result["rejections"]]
        shown = [f"  {line['id']}: {line['reason']}: {line['detail']}" for line in found[:10]]
        counts = ", ".join(f"{count:,} as {reason}" for reason, count in bad.most_common())
        raise UserError(
            "\n".join(
                [
                    f"source {source.name!r}: {wrong:,} of {total:,} records are wrong ({counts}); nothing is written. "
                    f"The limit is checks.max_rejected={config.checks.max_rejected:g}. The first:",
                    *shown,
                ]
            )
        )


def train_yaml(config: ImportConfig, layout: Layout, tokenizer: Any, manifests: dict[str, dict[str, Any]]) -> str:
    """A file for a training configuration to name among its `base`."""
    import yaml

    codec = config.codec.codec()
    vocabulary = vocabulary_of(tokenizer, codec)
    sources, validation = [], []
    for source in config.sources:
        for name, kind, weight in (
            (source.name, "interleaved", source.weight),
            (f"{source.name}-untranscribed", "speech", source.untranscribed_weight),
        ):
            entry = {"name": name, "kind": kind, "shards": [name]}
            if name in manifests and weight > 0:
                sources.append({**entry, "weight": weight})
            held = f"heldout-{name}"
            if held in manifests and weight > 0:
                validation.append({**entry, "shards": [held]})
    data = {"sources": sources} | ({"validation": validation} if validation else {})
    head = f"# Written by `lst prep import`: {codec}. Name it among the `base` files of a training configuration.\n"
    return head + yaml.safe_dump(
        {"vocabulary": vocabulary, "data": data}, sort_keys=False, allow_unicode=True, default_flow_style=None
    )
