"""The work of an import, one item at a time: first every record is checked, then documents are written.

Factories run in worker processes; see `engine`. Both stages read the same records in the same order.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from lst_prep.importing.config import ImportConfig
from lst_prep.importing.documents import Converter, Sample, documents
from lst_prep.importing.readers import reader_of
from lst_prep.importing.records import OnReject, Part
from lst_prep.items import Work
from lst_prep.layout import Layout
from lst_prep.parts import Parts, SetTotals
from lst_prep.places import path_of
from lst_prep.rejection import Rejection
from lst_prep.stages import Rejections, arrays, save_arrays
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes

CHECK, SHARDS = "import-check", "import-shards"
_EXAMPLES = 20
"""Rejections of one reason that an item's receipt keeps; all are counted."""


@dataclass(frozen=True)
class Item:
    """Parts of one source that are done together."""

    source: int
    parts: tuple[Part, ...]


def _samples(config: ImportConfig, item: Item, on_reject: OnReject) -> Iterator[Sample | None]:
    """The records of an item that are well, in order; None between two parts, which are never joined.

    Raises:
        CannotRead: a file, now.
        UserError: a file is damaged.
    """
    source = config.sources[item.source]
    reader, converter = reader_of(source.format), Converter(source, config.codec.codec(), config.checks)
    inputs = Layout(config.out).inputs(config)
    for part in item.parts:
        folder = path_of(part.path).parent
        try:
            for record in reader.read(source, part, inputs, on_reject):
                try:
                    yield converter.sample(record, folder, inputs)
                except Rejection as rejection:
                    on_reject(record.where, rejection)
        except Rejection as rejection:  # the file is given up
            on_reject(part.path, rejection)
        yield None


class _Counted(Rejections):
    """Rejections by reason, with some examples of each; the first stands for those that are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self._first: dict[str, dict[str, Any]] = {}

    def add(self, name: str, source: str, rejection: Rejection) -> None:
        reason = rejection.reason
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.counts[reason] <= _EXAMPLES:
            super().add(name, source, rejection)
            self._first.setdefault(reason, self.all[-1])
        else:
            self._first[reason]["times"] = self.counts[reason] - _EXAMPLES + 1


def id_hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name)


def check_factory(config: ImportConfig, items: list[Item]) -> Work:
    """Every record of an item against the codec; hashes of the ids, and texts that are held out."""
    layout = Layout(config.out)

    def work(number: int) -> dict[str, Any]:
        item = items[number]
        source = config.sources[item.source]
        rejections, hashes, held = _Counted(), list[int](), list[str]()
        seconds = 0.0
        for sample in _samples(config, item, lambda where, why: rejections.add(where, source.name, why)):
            if sample is None:
                continue
            hashes.append(id_hash(sample.id))
            seconds += sample.seconds
            if sample.split == "heldout" and sample.text:
                held.append(sample.text)
        files = save_arrays(layout.item(CHECK, number, ".npz"), {"hashes": np.array(hashes, np.uint64)})
        if held:
            path = layout.item(CHECK, number, ".jsonl")
            content = "".join(json.dumps(text) + "\n" for text in held).encode()
            write_bytes(path, content)
            files[str(path)] = len(content)
        return {
            "files": files,
            "source": source.name,
            "good": len(hashes),
            "bad": rejections.counts,
            "rejections": rejections.all,
            "heldout": len(held),
            "audio_seconds": seconds,
        }

    return work


def shards_factory(config: ImportConfig, items: list[Item]) -> Work:
    """Documents of an item: its part of the source's sets."""
    layout, codec = Layout(config.out), config.codec.codec()
    tokenizer, heldout = load_tokenizer(config.tokenizer), HeldOut.load(layout.heldout)

    def work(number: int) -> dict[str, Any]:
        item = items[number]
        source = config.sources[item.source]
        rejections, stats = _Counted(), SetTotals(codec)
        parts = Parts(layout, config.shards, number, codec, segments=True)
        checked = arrays(layout.item(CHECK, number, ".npz"))["hashes"].tolist()
        keep_file = layout.item("import-keep", number, ".npz")
        keep = arrays(keep_file)["keep"] if keep_file.exists() else None
        read, seconds = 0, 0.0

        def kept() -> Iterator[Sample | None]:
            nonlocal read, seconds
            for sample in _samples(config, item, lambda *_: None):  # counted when they were checked
                if sample is None:
                    yield None
                    continue
                if read >= len(checked) or checked[read] != id_hash(sample.id):
                    raise UserError(
                        f"source {source.name!r}: {item.parts[0].path} is no longer what was checked; remove "
                        f"{config.out} and import again"
                    )
                read += 1
                seconds += sample.seconds
                if keep is not None and not keep[read - 1]:
                    rejections.add(sample.id, source.name, Rejection("duplicate_id"))
                elif sample.split == "train" and sample.text and (found := heldout.find(sample.text)):
                    rejections.add(sample.id, source.name, Rejection("held_out", str(found[0])))
                    yield None  # what stands around it is not joined
                else:
                    yield sample

        for group in _groups(kept()):
            for split, made in documents(group, source.name, codec, tokenizer, config.shards.max_document_seconds):
                if isinstance(made, Rejection):
                    rejections.add(made.detail.partition(":")[0], source.name, made)
                    continue
                name = ("heldout-" if split == "heldout" else "") + source.name
                name += "" if len(made.token_ids) else "-untranscribed"
                if split == "train" and made.text and heldout.find(made.text):
                    rejections.add(made.id, source.name, Rejection("held_out"))
                    continue
                parts.add(name, made, codec.size, tokenizer.info.size)
                stats.add(name, made)
        return {
            "files": parts.finish(),
            "counts": parts.counts,
            "bad": rejections.counts,
            "rejections": rejections.all,
            "sources": stats.sources,
            "licenses": stats.licenses,
            "used": {source.name: read - sum(rejections.counts.values())},
            "audio_seconds": seconds,
        }

    return work


def _groups(samples: Iterator[Sample | None]) -> Iterator[Iterator[Sample]]:
    """Runs of samples between two None."""
    ended = False

    def group() -> Iterator[Sample]:
        nonlocal ended
        for sample in samples:
            if sample is None:
                return
            yield sample
        ended = True

    while not ended:
        yield group()
