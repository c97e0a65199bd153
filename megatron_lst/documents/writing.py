"""Writing shard sets: parts by items of work, joined into a set whose manifest comes last."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatron_lst.documents.codec import Codec, codebook_entry
from megatron_lst.documents.format import (
    HASH,
    INDEX,
    KINDS,
    MANIFEST,
    SIZE_COLUMNS,
    SIZES,
    TokenizerInfo,
    columns_of,
    document_sizes,
    encode,
    file_hash,
    load_sizes,
    save_sizes,
)
from megatron_lst.documents.mds import formats
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import write_text


class PartWriter:
    """Writes one part of a shard set: a folder of shards, its index and its sizes.

    The caller gives a temporary folder and renames it when `finish` has returned, so that a part is there whole or
    not at all.
    """

    def __init__(
        self,
        folder: Path,
        size_limit: int = 1 << 26,
        compression: str = "zstd:3",
        codec: Codec | None = None,
        segments: bool = False,
        turns: bool = False,
    ) -> None:
        """
        Args:
            codec: of the speech tokens; None: there are none.
            segments: documents may have segments for words.
            turns: documents are conversations.
        """
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self._codec, self._version = codec, schema_version(codec, segments, turns)
        self._sizes: list[tuple[int, int, int, int]] = []
        self._writer = formats().MDSWriter(
            out=str(folder),
            columns=columns_of(self._version),
            compression=compression or None,
            hashes=[HASH],
            size_limit=size_limit,
            max_workers=1,
        )

    def add(self, document: Document, speech_size: int | None = None, text_size: int | None = None) -> None:
        """Append one document. Raises DamagedDataError when it breaks the schema."""
        document.check(speech_size, text_size)
        if self._codec is not None and document.has_speech and (wrong := self._codec.check(document.speech_ids)):
            raise DamagedDataError(f"document {document.id!r} of source {document.source!r}: {wrong}")
        self._writer.write(encode(document, self._version, self._codec))
        self._sizes.append(document_sizes(document))

    def finish(self) -> int:
        """Flush and write index and sizes. Returns the number of documents."""
        self._writer.finish()
        save_sizes(self.folder / SIZES, np.array(self._sizes, np.int64).reshape(-1, len(SIZE_COLUMNS)))
        return len(self._sizes)

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._writer.cancel_future_jobs()
            shutil.rmtree(self.folder, ignore_errors=True)


def schema_version(codec: Codec | None, segments: bool, turns: bool = False) -> int:
    """The oldest version that can say what a set holds, so that older releases read what they can."""
    if turns:
        return 3
    return 1 if (codec is None or codec.plain) and not segments else 2


def merge_parts(
    root: Path,
    parts: Sequence[str],
    kind: str,
    tokenizer: TokenizerInfo,
    codec: Codec | None = None,
    extra: dict[str, Any] | None = None,
    segments: bool = False,
) -> dict[str, Any]:
    """Make one shard set of finished parts; writes index, sizes and, last, the manifest.

    Args:
        root: the set's folder, which holds the parts.
        parts: names of the parts' folders, in order; parts without documents are left out.
        kind: one of KINDS.
        codec, segments: as the parts were written with.
        extra: further keys of the manifest, for people (source names, licences, config).

    Returns:
        The manifest.

    Raises:
        UserError: nothing at all in the parts.
    """
    if kind not in KINDS:
        raise UserError(f"shard set {root}: kind must be one of {', '.join(KINDS)}, not {kind!r}")
    shards: list[dict[str, Any]] = []
    sizes: list[np.ndarray] = []
    for part in parts:
        index = json.loads((root / part / INDEX).read_text())
        for shard in index["shards"]:
            for key in ("raw_data", "zip_data"):
                if shard[key]:
                    shard[key]["basename"] = f"{part}/{shard[key]['basename']}"
            shards.append(shard)
        sizes.append(np.stack(list(load_sizes(root / part / SIZES).values()), axis=1))  # [documents, columns]
    table = np.concatenate(sizes) if sizes else np.zeros((0, len(SIZE_COLUMNS)), np.int64)
    if not len(table):
        raise UserError(f"shard set {root}: no document at all, every input was rejected (see the report)")
    write_text(root / INDEX, json.dumps({"version": 2, "shards": shards}, sort_keys=True))
    save_sizes(root / SIZES, table)
    manifest = {
        "format": "megatron-lst shard set",
        "schema_version": schema_version(codec, segments, kind == "chat"),
        "kind": kind,
        "documents": len(table),
        "totals": {name: int(total) for name, total in zip(SIZE_COLUMNS, table.sum(0), strict=True)},
        "shards": len(shards),
        "tokenizer": asdict(tokenizer),
        "codebook": codebook_entry(codec) if codec else None,
        **({"codec": codec.to_plain()} if codec else {}),
        "files": {name: file_hash(root / name) for name in (INDEX, SIZES)},
        **(extra or {}),
    }
    write_text(root / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    return manifest


def write_set(
    root: str | Path,
    documents: Iterable[Document],
    kind: str,
    tokenizer: TokenizerInfo,
    codec: Codec | None = None,
    size_limit: int = 1 << 26,
    compression: str = "zstd:3",
    extra: dict[str, Any] | None = None,
    segments: bool = False,
) -> ShardSet:
    """Write a whole set in one go (small sets, tests) and open it."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with PartWriter(root / "part-00000", size_limit, compression, codec, segments, kind == "chat") as part:
        for document in documents:
            part.add(document, codec.size if codec else None, tokenizer.size)
    merge_parts(root, ["part-00000"], kind, tokenizer, codec, extra, segments)
    return ShardSet.open(root)
