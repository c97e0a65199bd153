"""What one item writes into the sets: its part of each, and totals for summary and report."""

import errno
import os
import shutil
import socket
from pathlib import Path

from lst_prep.config import ShardConfig
from lst_prep.layout import Layout
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.schema import Document
from megatron_lst.documents.words import has_unspaced, word_count
from megatron_lst.documents.writing import PartWriter

_PUTS = 10
"""Attempts to put a folder in its place."""


class Parts:
    """The parts of several sets that one item writes; all are renamed into place together at the end."""

    def __init__(
        self,
        layout: Layout,
        options: ShardConfig,
        item: int,
        codec: Codec | None = None,
        segments: bool = False,
        turns: bool = False,
    ) -> None:
        """Args: codec, segments, turns: see `PartWriter`."""
        self._layout, self._options, self._item = layout, options, item
        self._codec, self._segments, self._turns = codec, segments, turns
        self._writers: dict[str, PartWriter] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, document: Document, speech_size: int | None, text_size: int) -> None:
        if name not in self._writers:
            folder = self._layout.out / name / f".part-{self._item:05d}.{socket.gethostname()}.{os.getpid()}.tmp"
            folder.parent.mkdir(parents=True, exist_ok=True)
            options = self._options
            self._writers[name] = PartWriter(
                folder, options.size_limit, options.compression, self._codec, self._segments, self._turns
            )
        self._writers[name].add(document, speech_size, text_size)

    def finish(self) -> dict[str, None]:
        """Returns {index file: None} of every part, for the receipt."""
        files: dict[str, None] = {}
        for name, writer in self._writers.items():
            self.counts[name] = writer.finish()
            final = self._layout.part(name, self._item)
            _put(writer.folder, final)
            files[str(final / "index.json")] = None
        return files


def _put(made: Path, final: Path) -> None:
    """Rename a folder into its place. A worker that was taken for dead may do the same at the same time: both have
    written the same files."""
    for _ in range(_PUTS):
        shutil.rmtree(final, ignore_errors=True)
        try:
            made.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.EEXIST, "another process puts the same folder there again and again", str(final))


_OF_LANGUAGE = ("documents", "seconds", "words", "pieces")


class SetTotals:
    """Totals per set and source, and per set and language, for summary and report."""

    def __init__(self, codec: Codec | None = None) -> None:
        self._codec = codec
        self.sources: dict[str, dict[str, float]] = {}
        self.licenses: dict[str, dict[str, int]] = {}
        self.languages: dict[str, dict[str, float]] = {}

    def add(self, name: str, document: Document, language: str = "") -> None:
        """Args: language: a tag; empty: it is not known, and not counted by language."""
        totals = self.sources.setdefault(
            f"{name}/{document.source}", {"documents": 0, "seconds": 0, "units": 0, "words": 0, "pieces": 0}
        )
        counts = self.licenses.setdefault(f"{name}/{document.source}", {})
        counts[document.license] = counts.get(document.license, 0) + 1
        seconds = len(document.speech_ids) / float(self._codec.rate) if self._codec is not None else 0.0
        words = len(document.word_frames) or len(document.text.split())
        pieces = len(document.token_ids)
        totals["documents"] += 1
        totals["seconds"] += seconds
        totals["units"] += len(document.speech_ids)
        totals["words"] += words
        totals["pieces"] += pieces
        if language:
            own = self.languages.setdefault(f"{name}/{language}", dict.fromkeys(_OF_LANGUAGE, 0))
            said = word_count(document.text) if has_unspaced(document.text) else words
            for key, value in zip(_OF_LANGUAGE, (1, seconds, said, pieces), strict=True):
                own[key] += value
