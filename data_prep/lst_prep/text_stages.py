"""The work of the text stages, one file at a time. Factories run in worker processes; see `engine`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lst_prep import text, text_files
from lst_prep.config import PrepConfig, TextSource
from lst_prep.engine import Work
from lst_prep.layout import Layout
from lst_prep.models import open_tokenizer
from lst_prep.parts import Parts, SetTotals
from lst_prep.rejection import Rejection
from lst_prep.stages import Rejections, arrays, save_arrays
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.documents.schema import Document

TextItem = tuple[dict[str, Any], str]
"""(TextSource as a dict, file): one item of the text stages."""


def _records(
    config: PrepConfig, item: TextItem, on_reject: Callable[[str, Rejection], None]
) -> Iterator[text_files.TextRecord]:
    inputs = Layout(config.out).inputs(config)
    return text_files.read_records(TextSource(**item[0]), Path(item[1]), on_reject, inputs)


def text_heldout_factory(config: PrepConfig, items: list[TextItem]) -> Work:
    """Hashes of the held-out sentences of a file. Records that cannot be read are counted by a later stage."""

    def work(item: int) -> dict[str, Any]:
        heldout, inputs = HeldOut(), Layout(config.out).inputs(config)
        for held in text_files.heldout_texts(TextSource(**items[item][0]), Path(items[item][1]), inputs):
            heldout.add(held)
        return {"hashes": sorted(heldout.hashes)}

    return work


def text_hashes_factory(config: PrepConfig, items: list[TextItem]) -> Work:
    """Hash every training text of a file, so that identical documents are found over all files."""
    layout = Layout(config.out)

    def work(item: int) -> dict[str, Any]:
        hashes = [
            text.document_hash(record.text)
            for record in _records(config, items[item], lambda *_: None)
            if record.split == "train"
        ]
        files = save_arrays(layout.item("text-hashes", item, ".npz"), {"hashes": np.array(hashes, np.uint64)})
        return {"files": files, "texts": len(hashes)}

    return work


def text_shards_factory(config: PrepConfig, items: list[TextItem]) -> Work:
    """Text -> chunks without held-out sentences -> one part of `text` and of `heldout-text` a file."""
    layout = Layout(config.out)
    tokenizer = open_tokenizer(layout, config)
    heldout = HeldOut.load(layout.heldout)

    def work(item: int) -> dict[str, Any]:
        source, path = TextSource(**items[item][0]), items[item][1]
        parts, rejections, stats = Parts(layout, config.shards, item), Rejections(), SetTotals()
        keep_file = layout.item("text-keep", item, ".npz")
        keep = arrays(keep_file)["keep"] if keep_file.exists() else None
        removed = trained = 0
        for record in _records(config, items[item], lambda where, why: rejections.add(where, source.name, why)):
            if record.split == "train":
                trained += 1
                if keep is not None and not keep[trained - 1]:
                    rejections.add(record.id, source.name, Rejection("duplicate_text"))
                    continue
                stretches, count = heldout.remove(record.text)
                removed += count
            else:
                stretches = [record.text]
            name = "text" if record.split == "train" else "heldout-text"
            made = [
                piece
                for stretch in stretches
                for piece in text.chunk(stretch, tokenizer, config.text_options.max_pieces)
            ]
            if not made and not stretches:
                rejections.add(record.id, source.name, Rejection("held_out" if removed else "empty_transcript"))
            for index, (chunk, ids) in enumerate(made):
                document = Document(
                    id=record.id if len(made) == 1 else f"{record.id}/{index}",
                    source=source.name,
                    license=source.license,
                    text=chunk,
                    token_ids=ids,
                )
                if name == "text" and heldout.find(chunk):  # by a cut inside a sentence
                    rejections.add(document.id, source.name, Rejection("held_out"))
                    continue
                parts.add(name, document, None, tokenizer.info.size)
                stats.add(name, document)
        files = parts.finish()
        return {
            "files": files,
            "counts": parts.counts,
            "rejections": rejections.all,
            "sources": stats.sources,
            "heldout_sentences_removed": removed,
            "path": path,
        }

    return work
