"""Text sources: read .txt, .jsonl and .parquet, clean of held-out sentences, cut into chunks for documents."""

import bz2
import glob
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from lst_prep.config import TextSource
from lst_prep.manifest import is_unicode
from lst_prep.rejection import Rejection
from lst_prep.tokenizer import Tokenizer
from megatron_lst.documents.heldout import normalise_text, sentence_spans
from megatron_lst.errors import UserError

_PACKED = {".zst", ".xz", ".gz", ".bz2"}
_KINDS = {".txt", ".jsonl", ".json", ".parquet"}


@dataclass(frozen=True)
class TextRecord:
    """One text as its source has it."""

    id: str
    text: str
    split: str


def source_files(source: TextSource) -> list[Path]:
    """The files of a source, sorted. Raises UserError when there are none."""
    path = Path(source.path)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file()]
    else:
        found = [Path(p) for p in glob.glob(source.path, recursive=True)]
    files = sorted(p for p in found if _kind(p) in _KINDS)
    if not files:
        raise UserError(f"text source {source.name!r}: no .txt, .jsonl or .parquet file at {source.path}")
    return files


def _kind(path: Path) -> str:
    suffixes = path.suffixes
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in _PACKED else path.suffix


def open_text(path: Path) -> IO[str]:
    """Open a text file, decompressing by its suffix."""
    binary: IO[bytes]
    if path.suffix == ".zst":
        import zstandard

        binary = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)  # type: ignore[assignment]
    elif path.suffix == ".xz":
        binary = lzma.open(path)  # noqa: SIM115
    elif path.suffix == ".gz":
        binary = gzip.open(path)  # type: ignore[assignment]  # noqa: SIM115
    elif path.suffix == ".bz2":
        binary = bz2.open(path)  # noqa: SIM115
    else:
        binary = path.open("rb")
    return io.TextIOWrapper(binary, encoding="utf-8", errors="replace")


def heldout_texts(source: TextSource, path: Path) -> Iterator[str]:
    """The held-out texts of one file; where none is, most of it is skipped."""
    for record in read_records(source, path, lambda *_: None, skim=source.split == "train"):
        if record.split == "heldout":
            yield record.text


def read_records(
    source: TextSource, path: Path, on_reject: Callable[[str, Rejection], None], skim: bool = False
) -> Iterator[TextRecord]:
    """Every text of one file. Records that are not what the format says are given to `on_reject`, never fatal.

    Args:
        skim: leave out records that cannot name a split of their own.
    """
    kind, stem = _kind(path), path.name.split(".")[0]
    try:
        if kind == ".parquet":
            yield from _read_parquet(source, path, stem, on_reject, skim)
        elif kind == ".txt":
            if skim:
                return
            with open_text(path) as file:
                yield TextRecord(stem, file.read(), source.split)
        else:
            with open_text(path) as file:
                lines = filter(_may_name_split, file) if skim else file
                yield from _read_jsonl(source, lines, path, stem, on_reject)
    except UserError:
        raise  # a ValueError, too
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        on_reject(str(path), Rejection("bad_text_line", f"the file breaks off: {error}"))
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("zstandard", "zstd", "pyarrow"):
            raise
        on_reject(str(path), Rejection("bad_text_line", f"the file breaks off: {error}"))


def _read_jsonl(
    source: TextSource, lines: Iterable[str], path: Path, stem: str, on_reject: Callable[[str, Rejection], None]
) -> Iterator[TextRecord]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            on_reject(f"{path}:{number}", Rejection("bad_text_line", f"not JSON ({error})"))
            continue
        text = value.get(source.text_key) if isinstance(value, dict) else None
        if not isinstance(text, str):
            on_reject(f"{path}:{number}", Rejection("bad_text_line", f"no string {source.text_key!r}"))
            continue
        if not is_unicode(text) or not is_unicode(str(value.get("id"))):
            on_reject(f"{path}:{number}", Rejection("bad_text_line", "holds half a surrogate pair"))
            continue
        yield _record(source, f"{stem}-{number}", text, value)


def _may_name_split(line: str) -> bool:
    """Without parsing it; a writer may escape any letter."""
    return '"split"' in line or "\\u00" in line


def _record(source: TextSource, name: str, text: str, value: dict[str, Any]) -> TextRecord:
    """A text with its own `id` and `split` where the record has them."""
    split = value.get("split")
    return TextRecord(str(value.get("id") or name), text, split if split in ("train", "heldout") else source.split)


def _read_parquet(
    source: TextSource, path: Path, stem: str, on_reject: Callable[[str, Rejection], None], skim: bool
) -> Iterator[TextRecord]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    with parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        if source.text_key not in there:
            raise UserError(f"{path}: no column {source.text_key!r}; it has {', '.join(there)}")
        if skim and "split" not in there:
            return
        number = 0
        columns = [name for name in (source.text_key, "id", "split") if name in there]
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for value in batch.to_pylist():
                number += 1
                text = value[source.text_key]
                if not isinstance(text, str):
                    on_reject(f"{path}:{number}", Rejection("bad_text_line", f"no string {source.text_key!r}"))
                    continue
                yield _record(source, f"{stem}-{number}", text, value)


def document_hash(text: str) -> int:
    """64 bits that are equal for texts equal up to case, punctuation and white space."""
    return int(xxhash.xxh3_64_intdigest(normalise_text(text).encode()))


def chunk(text: str, tokenizer: Tokenizer, max_pieces: int) -> Iterator[tuple[str, np.ndarray]]:
    """Cut a text into (text, token_ids int32) of at most `max_pieces`, at sentence or line ends where there are any.

    A sentence that is longer by itself is cut between words; a word that is longer, between characters.
    """
    ids = tokenizer.encode(text)
    if not ids:
        return
    if len(ids) <= max_pieces:
        yield text, np.array(ids, np.int32)
        return
    spans = sentence_spans(text)
    if len(spans) < 2:
        spans = _word_spans(text)
    if len(spans) < 2:
        middle = len(text) // 2
        yield from chunk(text[:middle], tokenizer, max_pieces)
        yield from chunk(text[middle:], tokenizer, max_pieces)
        return
    begin, used = 0, 0
    for index in range(len(spans)):
        stop = spans[index + 1][0] if index + 1 < len(spans) else len(text)
        size = len(tokenizer.encode(text[spans[index][0] if index else 0 : stop]))
        if used and used + size > max_pieces:
            yield from chunk(text[begin : spans[index - 1][1]], tokenizer, max_pieces)
            begin, used = spans[index][0], 0
        used += size
    if begin == 0:  # the parts fit by their own count, the whole does not: cut anyway
        begin = spans[len(spans) // 2][0]
        yield from chunk(text[:begin].rstrip(), tokenizer, max_pieces)
    yield from chunk(text[begin:].rstrip(), tokenizer, max_pieces)


def _word_spans(text: str) -> list[tuple[int, int]]:
    spans, at = [], 0
    for word in text.split():
        begin = text.index(word, at)
        at = begin + len(word)
        spans.append((begin, at))
    return spans
