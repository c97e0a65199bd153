"""What is in the files of a shard set: samples, sizes, hashes, and who made the ids in them."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_lst.documents.schema import COLUMNS, Document
from megatron_lst.files import replacing

HASH = "xxh128"
MANIFEST, INDEX, SIZES = "manifest.json", "index.json", "sizes.npz"
SIZE_COLUMNS = ("raw_tokens", "frames", "pieces", "words")
ARRAYS = {
    name: np.dtype(kind.removeprefix("ndarray:")).newbyteorder("<")
    for name, kind in COLUMNS.items()
    if kind.startswith("ndarray:")
}
_SPANS = ("word_frames", "word_tokens", "word_chars", "piece_frames")


@dataclass(frozen=True)
class TokenizerInfo:
    """What a reader must know of the tokenizer: identity and the ids that the vocabulary needs."""

    fingerprint: str
    size: int
    bos: int
    eos: int
    name: str = ""


@dataclass(frozen=True)
class CodebookInfo:
    """What a reader must know of the codebook that made the speech tokens."""

    fingerprint: str
    size: int
    extractor: str = ""


def encode(document: Document) -> dict[str, object]:
    """The document as an MDS sample: strings and bytes only."""
    sample = document.to_sample()
    for name, dtype in ARRAYS.items():
        sample[name] = np.asarray(sample[name]).astype(dtype, casting="safe", copy=False).tobytes()
    return sample


def decode(sample: dict[str, Any]) -> Document:
    """The inverse of `encode`; arrays are read-only views of the sample's bytes."""
    for name, dtype in ARRAYS.items():
        array = np.frombuffer(sample[name], dtype)
        sample[name] = array.reshape(-1, 2) if name in _SPANS else array
    return Document.from_sample(sample)


def document_sizes(document: Document) -> tuple[int, int, int, int]:
    """The document's entries in SIZE_COLUMNS."""
    return (
        document.raw_tokens,
        len(document.speech_ids),
        len(document.token_ids),
        len(document.word_frames),
    )


def save_sizes(path: Path, table: np.ndarray) -> None:
    """Write sizes.npz, whole or not at all. table: int64 [documents, len(SIZE_COLUMNS)]."""
    buffer = io.BytesIO()  # on a full disk numpy would complain behind the error
    np.savez(buffer, **{name: table[:, i] for i, name in enumerate(SIZE_COLUMNS)})  # type: ignore[arg-type]
    with replacing(path, "wb") as out:
        out.write(buffer.getbuffer())


def load_sizes(path: Path) -> np.ndarray:
    """int64 [documents, len(SIZE_COLUMNS)]."""
    with np.load(path, allow_pickle=False) as file:
        return np.stack([file[name] for name in SIZE_COLUMNS], axis=1)


def file_hash(path: Path) -> str:
    """xxh128 of a file's bytes, as hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
