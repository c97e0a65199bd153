"""The whole of data preparation: manifest -> codebook -> units -> alignment -> text -> shards. Resumable anywhere.

Every stage may be called by itself (`lst prep units --items 3/16`), in this order; `run` calls them all. All of them
write under one output folder (see `layout`), which belongs to one plan: config and inputs.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lst_prep import manifest, stages, text_files, text_stages
from lst_prep.config import PrepConfig
from lst_prep.engine import lock, run_stage
from lst_prep.fitting import SAMPLE, fit_codebook, sample_factory
from lst_prep.items import Receipts, Stage, faults_of_files_are_said
from lst_prep.layout import SETS, ItemTable, Layout, check_plan
from lst_prep.models import open_tokenizer, require_aligner, require_done, require_extractor
from lst_prep.places import path_of
from lst_prep.publishing import publish
from lst_prep.rejection import Rejection
from lst_prep.report import write_report
from lst_prep.strings import printable
from lst_prep.summary import Summary, lost_lines, read_lines
from lst_prep.tokenizer import check_round_trip
from lst_prep.units import Codebook, make_extractor
from lst_prep.units.codebook import import_codebook
from lst_prep.unread import JobFault
from megatron_lst.config.paths import absolute, told
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.writing import merge_parts
from megatron_lst.errors import UserError
from megatron_lst.files import replacing, write_bytes


class Preparation:
    """One output folder and what is done to it.

    Args:
        config: what to prepare.
        quiet: no progress.
        part: `i/n`: do only this slice of the items of item stages.

    Raises:
        UserError: the folder belongs to another plan or another tokenizer, or inputs cannot be read.
    """

    def __init__(self, config: PrepConfig, quiet: bool = False, part: str | None = None) -> None:
        self.config, self.quiet, self.part = absolute(config), quiet, part
        self.layout = Layout(config.out)
        self.plan = check_plan(self.layout, self.config)
        self.tokenizer = open_tokenizer(self.layout, self.config)

    # -- manifest -----------------------------------------------------------------------------------------------

    def manifest(self) -> int:
        """Divide the manifests into items of work and collect what is held out. Returns the number of items.

        Where `cutting.by` is set they are recordings, which `cut` makes pieces of; else pieces.
        """
        table = self.layout.recordings if self._cuts else self.layout.pieces
        if self.layout.tokenizer.exists():  # written last
            return len(table)
        heldout, inputs = HeldOut(), self.layout.inputs(self.config)
        for path in self.config.heldout:
            with inputs.local(path) as file:
                heldout.update(HeldOut.load(file))
        reasons = list[str]()
        with replacing(self.layout.manifest_rejections) as log:

            def reject(where: str, rejection: Rejection, source: str = "") -> None:
                reasons.append(printable(f"{where}: {rejection}"))
                source = source or Path(where.rpartition(":")[0]).name.split(".")[0]
                line = {"id": printable(where), "source": printable(source), "reason": rejection.reason}
                log.write(json.dumps({**line, "detail": printable(rejection.detail)}) + "\n")

            for origin in self.config.text:
                for ignored in text_files.ignored_files(origin, inputs):
                    reject(str(ignored), Rejection("ignored_file", f"text source {origin.name!r}"), origin.name)

            def entries() -> Iterator[manifest.Entry]:
                for entry in manifest.read(self.config.manifests, reject, self.config.audio.root, inputs, heldout.add):
                    if entry.split == "heldout":
                        heldout.add(entry.text)
                    yield entry

            items = table.write(entries(), self.config.jobs.item_pieces)
        texts = self._text_items()
        if not items and not texts:
            why = f"; {len(reasons)} rejected, the first: {reasons[0]}" if reasons else "; name `manifests` or `text`"
            raise UserError(f"nothing to prepare: no usable manifest line and no text source{why}")
        for warning in text_stages.heldout_by_name(texts):
            print(f"WARNING: {warning}", file=sys.stderr)
        self._stage("text-heldout", len(texts), text_stages.text_heldout_factory, self.config, texts)
        heldout.update(text_stages.collect_heldout(self.layout, texts, self.results("text-heldout", len(texts))))
        check_round_trip(
            self.tokenizer, chain(self._first_transcripts(table), text_stages.first_texts(self.config, texts))
        )
        heldout.save(self.layout.heldout)
        write_bytes(
            self.layout.tokenizer,
            json.dumps(
                {"spec": self.config.tokenizer, "path": self.tokenizer.path, **asdict(self.tokenizer.info)}, indent=1
            ).encode(),
        )
        return items

    @staticmethod
    def _first_transcripts(table: ItemTable) -> Iterator[tuple[str, str]]:
        """(source, transcript) of some pieces, from the beginning on."""
        return ((entry.source, entry.text) for item in range(min(len(table), 100)) for _, entry in table.read(item))

    def _require_manifest(self) -> None:
        if not self.layout.tokenizer.exists():  # what `manifest` writes last
            raise UserError(f"{self.layout.out}: there are no items of work yet: run `lst prep manifest`")

    # -- speech -------------------------------------------------------------------------------------------------

    @property
    def _cuts(self) -> bool:
        return self.config.cutting.by != "none"

    def cut(self) -> int:
        """Recordings -> pieces, every item; then the table of pieces, unless this is a slice. Returns its items."""
        if not self._cuts or self.layout.pieces.items.exists():
            return len(self.layout.pieces)
        items = len(self.layout.recordings)
        self._stage("cut", items, stages.cut_factory, self.config, check=self._require_aligner)
        if self.part is not None:
            return 0
        require_done(self.layout, self.plan, "cut", items, "aligner")
        return self.layout.pieces.write(stages.cut_pieces(self.layout, items), self.config.jobs.item_pieces)

    def codebook(self) -> Codebook:
        """Load, import or fit the codebook."""
        if self.layout.codebook.exists():
            return Codebook.load(self.layout.codebook)
        self._require_manifest()
        options = self.config.units
        # Samples are the workers' business, and the hash of a model depends on neither device nor precision.
        extractor = make_extractor(replace(options, device="cpu", precision="fp32"))
        if options.codebook:
            inputs = self.layout.inputs(self.config)
            if not inputs.is_there(path_of(options.codebook)):
                raise UserError(f"units.codebook: {told(options.codebook)}: no such file")
            with inputs.local(options.codebook) as file:
                codebook = import_codebook(file, extractor)
        else:
            codebook = fit_codebook(self.layout, self.config, extractor, self._sample)
        codebook.require(extractor)
        codebook.settings = dict(extractor.settings)  # a file of an older version does not say them
        codebook.save(self.layout.codebook)
        shutil.rmtree(self.layout.work / SAMPLE, ignore_errors=True)
        return codebook

    def _sample(self, items: range) -> list[dict[str, Any]]:
        """Features of some items of the codebook's sample, and the results of their receipts."""
        every = len(self.layout.pieces)
        self._stage(SAMPLE, every, sample_factory, self.config, gpu=self.config.neural_units, ahead=True, only=items)
        receipts = Receipts(self.layout.work, SAMPLE, self.plan)
        return [result for item in items if (result := receipts.read(item)) is not None]

    def units(self) -> None:
        """Audio -> units, every item."""
        self._stage(
            "units", len(self.layout.pieces), stages.units_factory, self.config,
            check=lambda: require_extractor(self.layout, self.config), gpu=self.config.neural_units, ahead=True,
        )  # fmt: skip

    def align(self) -> None:
        """Audio + transcripts -> word times, every item."""
        self._stage(
            "align", len(self.layout.pieces), stages.align_factory, self.config, self.plan,
            check=self._require_aligner, gpu=self.config.neural_alignment, ahead=True,
        )  # fmt: skip

    def _require_aligner(self) -> None:
        require_aligner(self.layout, self.config, self.plan)

    def shards(self) -> dict[str, dict[str, Any]]:
        """Documents and shard sets of everything. Returns the manifests by set name."""
        self._require_manifest()
        items, groups = len(self.layout.pieces), []
        counts = self.layout.pieces.counts()
        first, size = 0, 0
        for item in range(items):
            size += int(counts[item])
            if size >= self.config.shards.part_pieces or item == items - 1:
                groups.append((first, item + 1))
                first, size = item + 1, 0
        require_done(self.layout, self.plan, "units", items, "codebook")
        require_done(self.layout, self.plan, "align", items, "aligner")
        self._stage("shards", len(groups), stages.speech_shards_factory, self.config, groups, self.plan)
        texts = self._text_items()
        require_done(self.layout, self.plan, "text", len(texts))
        if self.part is not None:
            return {}
        manifests = self._merge(len(groups), len(texts))
        if self.config.publish:
            publish(self.layout.out, self.config.publish, self.config.jobs, self.quiet)
        return manifests

    # -- text ---------------------------------------------------------------------------------------------------

    def _text_items(self) -> list[text_stages.TextItem]:
        return text_stages.text_items(self.config, self.layout.texts())

    def text(self) -> None:
        """Text -> parts of the text sets; identical documents are dropped over all files."""
        self._require_manifest()
        items = self._text_items()
        if self.config.text_options.deduplicate and items:
            self._stage("text-hashes", len(items), text_stages.text_hashes_factory, self.config, items)
            hashed = list(self.results("text-hashes", len(items)))
            if None in hashed:
                print(
                    "prep text: this slice is hashed; duplicates are known when every slice is: then run it again",
                    file=sys.stderr,
                )
                return
            texts = sum(result["texts"] for result in hashed if result)
            text_stages.mark_duplicates(self.layout, len(items), texts)
        self._stage("text", len(items), text_stages.text_shards_factory, self.config, items)

    # -- all ----------------------------------------------------------------------------------------------------

    def _stage(
        self,
        name: str,
        items: int,
        factory: Any,
        *arguments: Any,
        check: Callable[[], None] = lambda: None,
        gpu: bool = False,
        ahead: bool = False,
        only: Sequence[int] | None = None,
    ) -> None:
        run_stage(
            Stage(name, items, factory, arguments, gpu, ahead and self.config.jobs.decode_threads != 0),
            self.layout.work,
            self.plan,
            self.config.jobs,
            self.part,
            self.quiet,
            check,
            self.config.reading.max_unreadable,
            only,
        )

    def results(self, name: str, items: int) -> Iterator[dict[str, Any] | None]:
        """The receipts' results of a stage."""
        receipts = Receipts(self.layout.work, name, self.plan)
        return (receipts.read(item) for item in range(items))

    def _all(self, name: str, items: int) -> Iterator[dict[str, Any]]:
        """The same of a stage that is done: a receipt that is not there now is not an item without documents."""
        for item, result in enumerate(self.results(name, items)):
            if result is None:
                raise JobFault(f"stage {name}: the receipt of item {item}, or its files, are not there now; run again")
            yield result

    def _merge(self, groups: int, texts: int) -> dict[str, dict[str, Any]]:
        """Join the parts into shard sets, write the summary.

        Raises:
            UserError: there is not one document; the summary is written.
        """
        manifests: dict[str, dict[str, Any]] = {}
        codec = Codebook.load(self.layout.codebook).codec if groups else None
        summary = self._summary(groups, texts)
        for name in SETS:
            kind = "speech" if name.endswith("speech") else "text"
            results = self._all("shards", groups) if kind == "speech" else self._all("text", texts)
            parts = [
                self.layout.part(name, item).name for item, result in enumerate(results) if result["counts"].get(name)
            ]
            if parts:
                manifests[name] = merge_parts(
                    self.layout.out / name,
                    parts,
                    kind,
                    self.tokenizer.info,
                    codec if kind == "speech" else None,
                    {"plan": self.plan, **summary.about(name, self.config.attributions)},
                )
        heldout = len(HeldOut.load(self.layout.heldout))
        content = summary.content(self.plan, manifests, heldout, self.config.warn_lost, self.config.warn_pieces)
        write_bytes(self.layout.summary, json.dumps(content, indent=1, ensure_ascii=False).encode())
        if not manifests:
            what = f"{self.layout.out}: not one document came out of it, see {self.layout.summary}"
            raise UserError("\n".join([what, *lost_lines(content)]))
        return manifests

    def _summary(self, groups: int, texts: int) -> Summary:
        summary, items = Summary(), len(self.layout.pieces)
        for line in read_lines(self.layout.manifest_rejections):
            summary.reject(line)
        for result in chain(
            self._all("cut", len(self.layout.recordings) if self._cuts else 0),
            self._all("units", items),
            self._all("align", items),
            self._all("shards", groups),
            self._all("text", texts),
        ):
            summary.add(result)
        return summary


def _clean(layout: Layout) -> None:
    """Remove what killed runs left half written."""
    for path in layout.out.rglob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def run(config: PrepConfig, quiet: bool = False) -> dict[str, Any]:
    """Do all that is missing.

    Returns:
        The summary: sets with totals, sources, rejections by reason (also in `OUT/summary.json`).

    Raises:
        UserError: bad config or input as a whole, another plan or another run in the folder, no space left.
    """
    layout = Layout(config.out)
    with lock(layout.lock), faults_of_files_are_said():
        _clean(layout)
        preparation = Preparation(config, quiet)
        preparation.manifest()
        if preparation.cut():
            preparation.codebook()
            preparation.units()
            preparation.align()
        preparation.text()
        preparation.shards()
        write_report(layout.out)
        return dict(json.loads(layout.summary.read_text()))
