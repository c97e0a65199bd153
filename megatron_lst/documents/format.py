"""What is in the files of a shard set: samples, sizes, hashes, and who made the ids in them."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megatron_lst.documents.codec import Codec
from megatron_lst.documents.schema import COLUMNS, SEGMENT_COLUMNS, TURN_COLUMNS, Document
from megatron_lst.files import replacing

HASH = "xxh128"
MANIFEST, INDEX, SIZES = "manifest.json", "index.json", "sizes.npz"
KINDS = ("speech", "text", "chat")
"""What a set holds: documents with speech, texts, conversations."""
SIZE_COLUMNS = ("raw_tokens", "frames", "pieces", "words")
ARRAYS = {
    name: np.dtype(kind.removeprefix("ndarray:")).newbyteorder("<")
    for name, kind in (COLUMNS | SEGMENT_COLUMNS | TURN_COLUMNS).items()
    if kind.startswith("ndarray:")
}
_WIDTH = {
    name: 3 if name == "turn_spans" else 2
    for name in ARRAYS
    if name.endswith(("_frames", "_tokens", "_chars", "_spans"))
}
"""Numbers of an entry, of the columns whose entries are several."""
_IDS = "units"


@dataclass(frozen=True)
class TokenizerInfo:
    """What a reader must know of the tokenizer: identity and the ids that the vocabulary needs."""

    fingerprint: str
    size: int
    bos: int
    eos: int
    name: str = ""


def columns_of(version: int) -> dict[str, str]:
    """Names of the columns of a schema version, and MDS's encoding of each."""
    names = COLUMNS | (SEGMENT_COLUMNS if version >= 2 else {}) | (TURN_COLUMNS if version >= 3 else {})
    return {name: "bytes" if name in ARRAYS else "str" for name in names}


def encode(document: Document, version: int = 1, codec: Codec | None = None) -> dict[str, object]:
    """The document as an MDS sample: strings and bytes only.

    Args:
        codec: what made its speech tokens, where that is more than version 1 can say.
    """
    sample = document.to_sample()
    columns = columns_of(version)
    for name, dtype in ARRAYS.items():
        dtype = codec.dtype if name == _IDS and codec is not None else dtype
        sample[name] = np.asarray(sample[name]).astype(dtype, casting="safe", copy=False).tobytes()
    return {name: sample[name] for name in columns}


def decode(sample: dict[str, Any], codec: Codec | None = None) -> Document:
    """The inverse of `encode`; arrays are read-only views of the sample's bytes."""
    for name, dtype in ARRAYS.items():
        if name not in sample:
            continue
        array = np.frombuffer(sample[name], codec.dtype if name == _IDS and codec is not None else dtype)
        if name in _WIDTH:
            array = array.reshape(-1, _WIDTH[name])
        elif name == _IDS and codec is not None and codec.depth > 1:
            array = array.reshape(-1, codec.depth)
        sample[name] = array
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


def load_sizes(path: Path) -> dict[str, np.ndarray]:
    """The columns of sizes.npz, each int64 [documents], mapped: all processes of a machine share one copy of them.

    100 million documents are 3.2 GB, and every data worker of a machine opens them.

    Raises:
        ValueError, KeyError: not what `save_sizes` wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [archive.getinfo(f"{name}.npy") for name in SIZE_COLUMNS]
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    content = np.memmap(path, np.uint8, "r")
    return {name: _mapped(content, member) for name, member in zip(SIZE_COLUMNS, members, strict=True)}


def _mapped(content: np.ndarray, member: zipfile.ZipInfo) -> np.ndarray:
    """An array that lies uncompressed in an .npz, as a view of the file's bytes: int64 [n]."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    name, extra = content[member.header_offset + 26 : member.header_offset + 30].view("<u2")  # of the member's header
    start = member.header_offset + 30 + int(name) + int(extra)
    header = io.BytesIO(content[start : start + 256].tobytes())
    version = np.lib.format.read_magic(header)
    if version != (1, 0):
        raise ValueError(f"{member.filename} has version {version} of the .npy format")
    (count,), _, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype != np.dtype("<i8"):
        raise ValueError(f"{member.filename} holds {dtype}")
    first = start + header.tell()
    return content[first : first + 8 * count].view("<i8")


def file_hash(path: Path) -> str:
    """xxh128 of a file's bytes, as hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
