"""The work of the text stages, one item of files at a time. Factories run in worker processes; see `engine`."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lst_prep import text, text_files
from lst_prep.config import PrepConfig, TextSource
from lst_prep.items import Work
from lst_prep.layout import Layout
from lst_prep.models import open_tokenizer
from lst_prep.parts import Parts, SetTotals
from lst_prep.places import path_of
from lst_prep.rejection import Rejection
from lst_prep.splits import split_of
from lst_prep.stages import Rejections, arrays, save_arrays
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError

TextItem = tuple[dict[str, Any], tuple[str, ...]]
"""(TextSource as a dict, files): one item of the text stages."""


def text_items(config: PrepConfig, listed: dict[str, int]) -> list[TextItem]:
    """The files of all sources, neighbours of one source together up to `jobs.item_bytes`: thousands of small files do
    not become thousands of items and shards. The same on every machine, and whatever is away now.

    Args:
        listed: text files of the plan, and their bytes.
    """
    items: list[TextItem] = []
    for source in config.text:
        files, size = list[str](), 0
        for path in text_files.files_of(source, map(path_of, listed)):
            more = listed[str(path)]
            if files and size + more > config.jobs.item_bytes:
                items.append((asdict(source), tuple(files)))
                files, size = [], 0
            files.append(str(path))
            size += more
        items.append((asdict(source), tuple(files)))
    return items


def heldout_by_name(items: list[TextItem]) -> list[str]:
    """One warning for each training source with files that are called what data sets call their held-out splits."""
    found: dict[str, list[str]] = {}
    for source, files in items:
        if source["split"] == "train":
            names = [file for file in files if split_of(Path(file).name) == "heldout"]
            found.setdefault(source["name"], []).extend(names)
    return [
        f"text source {name!r} trains on {len(files)} files with names of held-out splits, such as {files[0]}; if they "
        f"are, make them a source of their own with `split: heldout`"
        for name, files in found.items()
        if files
    ]


def _records(
    config: PrepConfig, item: TextItem, on_reject: text_files.OnReject
) -> Iterator[tuple[str, text_files.TextRecord]]:
    """(file, record) of every record of an item."""
    inputs, source = Layout(config.out).inputs(config), TextSource(**item[0])
    for path in item[1]:
        for record in text_files.read_records(source, path_of(path), on_reject, inputs):
            yield path, record


def first_texts(config: PrepConfig, items: list[TextItem]) -> Iterator[tuple[str, str]]:
    """(source, text) of the first records of the first item of each source."""
    seen = set[str]()
    for item in items:
        if (name := item[0]["name"]) not in seen:
            seen.add(name)
            for _, record in islice(_records(config, item, lambda *_: None), 100):
                yield name, record.text


def text_heldout_factory(config: PrepConfig, items: list[TextItem]) -> Work:
    """What is held out in the files of an item: an .npz of hashes.

    A fault in a held-out source raises UserError: nothing is prepared with a part of what must be kept out. A fault in
    a training source is in the result (`fault`), for `require_whole`.
    """
    layout = Layout(config.out)

    def work(item: int) -> dict[str, Any]:
        heldout, inputs, source = HeldOut(), layout.inputs(config), TextSource(**items[item][0])
        faults, texts = list[str](), 0

        def fault(where: str, rejection: Rejection) -> None:
            if rejection.reason == "given_up":
                return
            faults.append(f"{where}: {rejection.detail}")
            if source.split == "heldout":
                raise UserError(_broken(source.name, faults[0]))

        for path in items[item][1]:
            for held in text_files.heldout_texts(source, path_of(path), inputs, fault):
                heldout.add(held)
                texts += 1
        files = save_arrays(layout.item("text-heldout", item, ".npz"), heldout.arrays()) if texts else {}
        return {"files": files, "texts": texts, "sentences": len(heldout), "fault": faults[0] if faults else None}

    return work


def _broken(source: str, fault: str) -> str:
    return (
        f"text source {source!r} holds held-out text that cannot be read whole, so nothing is prepared: {fault}. "
        f"Mend it, take it out, or give the file up by name (`give_up`)"
    )


def collect_heldout(layout: Layout, items: list[TextItem], results: Iterator[dict[str, Any] | None]) -> HeldOut:
    """What the items of `text-heldout` hold out together.

    Raises:
        UserError: a source that is held out has no text, or one with held-out records could not be read whole.
    """
    heldout, sentences, faults = HeldOut(), dict[str, int](), dict[str, str]()
    for number, ((source, _), result) in enumerate(zip(items, results, strict=True)):
        assert result is not None, "a stage that ended has all its receipts"
        name = source["name"]
        sentences[name] = sentences.get(name, 0) + result["sentences"]
        if result["fault"]:
            faults.setdefault(name, result["fault"])
        if result["texts"]:
            heldout.update(HeldOut.from_arrays(arrays(layout.item("text-heldout", number, ".npz"))))
    for source, files in items:
        name = source["name"]
        if not sentences[name] and source["split"] == "heldout":
            raise UserError(f"text source {name!r} is held out and has no sentence to hold out: {files[0]}")
        if sentences[name] and name in faults:
            raise UserError(_broken(name, faults[name]))
    return heldout


def text_hashes_factory(config: PrepConfig, items: list[TextItem]) -> Work:
    """Hash every training text of an item, so that identical documents are found over all files."""
    layout = Layout(config.out)

    def work(item: int) -> dict[str, Any]:
        hashes = [
            text.document_hash(record.text)
            for _, record in _records(config, items[item], lambda *_: None)
            if record.split == "train"
        ]
        files = save_arrays(layout.item("text-hashes", item, ".npz"), {"hashes": np.array(hashes, np.uint64)})
        return {"files": files, "texts": len(hashes)}

    return work


def mark_duplicates(layout: Layout, items: int, texts: int) -> None:
    """Per item, which training texts are the first of their kind. Takes 8 bytes of memory a text.

    Args:
        texts: of all items together.
    """
    files = [layout.item("text-hashes", item, ".npz") for item in range(items)]
    keeps = [layout.item("text-keep", item, ".npz") for item in range(items)]
    if all(keep.exists() for keep in keeps):
        return
    every, at = np.empty(texts, np.uint64), 0
    for file in files:
        hashes = arrays(file)["hashes"]
        every[at : at + len(hashes)] = hashes
        at += len(hashes)
    every.sort()
    repeated = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    seen = np.zeros(len(repeated), bool)
    for path, file in zip(keeps, files, strict=True):
        hashes = arrays(file)["hashes"]
        suspects = np.flatnonzero(np.isin(hashes, repeated))
        kinds, first = np.unique(np.searchsorted(repeated, hashes[suspects]), return_index=True)
        keep = np.ones(len(hashes), bool)
        keep[suspects] = False
        keep[suspects[first[~seen[kinds]]]] = True
        seen[kinds] = True
        save_arrays(path, {"keep": keep})


def text_shards_factory(config: PrepConfig, items: list[TextItem]) -> Work:
    """Text -> chunks without held-out text -> one part of `text` and of `heldout-text` an item."""
    layout = Layout(config.out)
    tokenizer = open_tokenizer(layout, config)
    heldout = HeldOut.load(layout.heldout)

    def work(item: int) -> dict[str, Any]:
        source = TextSource(**items[item][0])
        parts, rejections, stats = Parts(layout, config.shards, item), Rejections(), SetTotals()
        keep_file = layout.item("text-keep", item, ".npz")
        keep = arrays(keep_file)["keep"] if keep_file.exists() else None
        removed = trained = used = cut = characters = 0

        def reject(name: str, rejection: Rejection) -> None:
            rejections.add(name, source.name, rejection)

        for path, record in _records(config, items[item], reject):
            stretches = [record.text]
            if record.split == "train":
                trained += 1
                if keep is not None and trained > len(keep):
                    raise UserError(_other(path, layout))
                if not record.text.strip():
                    reject(record.id, Rejection("empty_transcript"))
                    continue
                if keep is not None and not keep[trained - 1]:
                    reject(record.id, Rejection("duplicate_text"))
                    continue
                stretches, count = heldout.remove(record.text)
                removed += count
                characters += len(record.text)
                cut += len(record.text) - sum(map(len, stretches)) if count else 0
                if count and not stretches:
                    reject(record.id, Rejection("held_out", record.text[:200]))
                    continue
            documents = 0
            for document in _documents(record, stretches, source, tokenizer, config.text_options.max_pieces):
                if record.split == "train" and heldout.find(document.text):  # by a cut inside a sentence
                    reject(document.id, Rejection("held_out", document.text[:200]))
                    continue
                name = "text" if record.split == "train" else "heldout-text"
                parts.add(name, document, None, tokenizer.info.size)
                stats.add(name, document, config.language_of(source.name))
                documents += 1
            used += documents > 0
        if keep is not None and trained < len(keep):
            raise UserError(_other(items[item][1][0], layout))
        files = parts.finish()
        return {
            "files": files,
            "counts": parts.counts,
            "rejections": rejections.all,
            "sources": stats.sources,
            "licenses": stats.licenses,
            "languages": stats.languages,
            "used": {source.name: used},
            "cut": {source.name: [cut, characters]},
            "heldout_sentences_removed": removed,
            "path": items[item][1][0],
        }

    return work


def _other(path: str, layout: Layout) -> str:
    return (
        f"{path} (or a file of its item): has another number of texts than when it was hashed; remove {layout.work} "
        f"and run again"
    )


def _documents(
    record: text_files.TextRecord, stretches: list[str], source: TextSource, tokenizer: Any, max_pieces: int
) -> Iterator[Document]:
    made = [piece for stretch in stretches for piece in text.chunk(stretch, tokenizer, max_pieces)]
    for index, (chunk, ids) in enumerate(made):
        yield Document(
            id=record.id if len(made) == 1 else f"{record.id}/{index}",
            source=source.name,
            license=source.license,
            text=chunk,
            token_ids=ids,
        )
