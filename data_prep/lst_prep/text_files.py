"""Files of text: which ones a source has, and the records in them. What is bad is named, counted and skipped."""

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, BinaryIO

from lst_prep import packed
from lst_prep.config import TextSource
from lst_prep.places import AnyPath, path_of
from lst_prep.reading import Inputs, left_of
from lst_prep.rejection import Rejection
from lst_prep.splits import split_of
from lst_prep.strings import is_unicode
from lst_prep.text_lines import as_text, utf8_fault
from megatron_lst.config.paths import told
from megatron_lst.errors import UserError

OnReject = Callable[[str, Rejection], None]
"""Called with `path:line` (or the path) and the rejection of what cannot be used."""

_KINDS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class TextRecord:
    """One text as its source has it."""

    id: str
    text: str
    split: str
    """`train` or `heldout`."""


def _kind(path: AnyPath) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in packed.SUFFIXES:
        kind = _KINDS.get(suffixes[-2])
        return None if kind == "parquet" else kind
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _candidates(source: TextSource, inputs: Inputs) -> set[AnyPath]:
    """A path that is there is that file or folder, brackets in it or not; else it is a pattern. What was listed once
    and is given up since keeps its place, there or not."""
    path = path_of(source.path)
    lost = set(files_of(source, inputs.lost()))
    if inputs.is_there(path, folder=True):
        return lost.union(inputs.walk(path))
    if inputs.is_there(path):
        return lost | {path}
    return lost.union(inputs.expand(source.path, only_files=True))


def files_of(source: TextSource, listed: Iterable[AnyPath]) -> list[AnyPath]:
    """Those of some files that a source names, sorted; without a look at the disk, where they may be away."""
    root = path_of(source.path).parts
    return sorted(file for file in listed if _belongs(file.parts, root))


def _belongs(file: tuple[str, ...], root: tuple[str, ...]) -> bool:
    return file[: len(root)] == root or _matches(file, root)


def _matches(file: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """As `Inputs.expand`."""
    if not pattern or not file:
        return not pattern and not file
    if file[0].startswith(".") and not pattern[0].startswith("."):
        return False
    if pattern[0] == "**":
        return _matches(file, pattern[1:]) or _matches(file[1:], pattern)
    return fnmatch.fnmatchcase(file[0], pattern[0]) and _matches(file[1:], pattern[1:])


def source_files(source: TextSource, inputs: Inputs | None = None) -> list[AnyPath]:
    """The files of a source, sorted; folders that are links are followed.

    Raises:
        UserError: there are none.
        CannotRead: a folder cannot be listed.
    """
    files = sorted(path for path in _candidates(source, inputs or Inputs()) if _kind(path))
    if not files:
        raise UserError(
            f"text source {source.name!r}: no .txt, .jsonl, .ndjson, .json or .parquet file at {told(source.path)}"
        )
    return files


def ignored_files(source: TextSource, inputs: Inputs | None = None) -> list[AnyPath]:
    """What lies there too and is of no kind that is read, sorted."""
    return sorted(path for path in _candidates(source, inputs or Inputs()) if not _kind(path))


def name_of(source: TextSource, path: AnyPath) -> str:
    """What texts without an id of their own are called after: source, and place of the file in it."""
    root = path_of(source.path).parts
    if path.parts[: len(root)] != root:  # a pattern
        root = tuple(takewhile(lambda part: not any(ch in part for ch in "*?["), root))
    *folders, name = path.parts[len(root) :] or path.parts[-1:]
    return "/".join((source.name, *folders, name.split(".")[0]))


def heldout_texts(
    source: TextSource, path: AnyPath, inputs: Inputs | None = None, on_reject: OnReject = lambda *_: None
) -> Iterator[str]:
    """The held-out texts of one file; where none is, most of it is skipped.

    Args:
        on_reject: what cannot be read may have been held out: who collects has to stop there, see `text_stages`.
    """
    for record in read_records(source, path, on_reject, inputs, skim=source.split == "train"):
        if record.split == "heldout":
            yield record.text


def read_records(
    source: TextSource, path: AnyPath, on_reject: OnReject, inputs: Inputs | None = None, skim: bool = False
) -> Iterator[TextRecord]:
    """Every text of one file. What is not as the format says is given to `on_reject`, never fatal.

    Args:
        inputs: opens the file.
        skim: leave out records that cannot name a split of their own.

    Raises:
        CannotRead: the file cannot be read now.
        UserError: parquet without the text column, or without pyarrow; a record of a split that nobody knows.
    """
    inputs, kind, stem = inputs or Inputs(), _kind(path), name_of(source, path)
    if kind == "txt" and skim:
        return
    try:
        file = inputs.open(path)
    except Rejection as rejection:
        on_reject(str(path), rejection)
        return
    with file:
        try:
            if kind == "parquet":
                yield from _read_parquet(source, file, path, stem, on_reject, skim)
                return
            with as_text(packed.unpacked(file, path), source.encoding) as lines:
                if kind == "txt":
                    yield from _read_txt(source, lines.read(), path, stem, on_reject)
                else:
                    yield from _read_jsonl(source, lines, path, stem, on_reject, skim)
        except UserError:
            raise  # a ValueError, too
        except Exception as error:
            if not packed.is_damage(error):
                raise
            left, size = left_of(file)
            what = f"the file breaks off: {error}; {left:,} of its {size:,} bytes were not looked at"
            on_reject(str(path), Rejection("bad_text_line", what, left))


def _read_txt(source: TextSource, text: str, path: AnyPath, stem: str, on_reject: OnReject) -> Iterator[TextRecord]:
    if (fault := utf8_fault(text, source.encoding)) is None:
        yield TextRecord(stem, text, source.split)
    else:
        on_reject(str(path), Rejection("bad_text_line", f"{fault}; see `encoding`"))


def _read_jsonl(
    source: TextSource, lines: Iterable[str], path: AnyPath, stem: str, on_reject: OnReject, skim: bool
) -> Iterator[TextRecord]:
    for number, value in _json_values(source, lines, path, on_reject, skim):
        text = value.get(source.text_key) if isinstance(value, dict) else None
        if not isinstance(text, str):
            on_reject(f"{path}:{number}", Rejection("bad_text_line", _no_text(source, value)))
            continue
        if not is_unicode(text) or not is_unicode(str(value.get("id"))):
            on_reject(f"{path}:{number}", Rejection("bad_text_line", "holds half a surrogate pair"))
            continue
        if isinstance(value.get("id"), dict | list):
            on_reject(f"{path}:{number}", Rejection("bad_text_line", "the id is neither a text nor a number"))
            continue
        yield _record(source, f"{stem}-{number}", text, value, f"{path}:{number}")


def _no_text(source: TextSource, value: Any) -> str:
    """What a record without the text has instead."""
    said = f"no string {source.text_key!r}"
    if not isinstance(value, dict) or source.text_key in value:
        return said
    others = [str(name) for name, item in value.items() if isinstance(item, str)]
    return said + (f"; it has {', '.join(others[:5])}: name one as the source's `text_key`" if others else "")


def _json_values(
    source: TextSource, lines: Iterable[str], path: AnyPath, on_reject: OnReject, skim: bool
) -> Iterator[tuple[int, Any]]:
    """(line, value) of JSON lines; (number, value) of a .json file that is one array."""
    whole = _kind(path) == "json"
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (skim and not whole and not _may_name_split(line)):
            continue
        if (fault := utf8_fault(line, source.encoding)) is not None:
            on_reject(f"{path}:{number}", Rejection("bad_text_line", f"{fault}; see `encoding`"))
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if whole:  # no JSON lines: one value over many
                yield from _one_value(line + "".join(lines), path, on_reject)
                return
            on_reject(f"{path}:{number}", Rejection("bad_text_line", f"not JSON ({error})"))
            continue
        if whole and isinstance(value, list):
            yield from enumerate(value, start=1)
        else:
            yield number, value
        whole = False


def _one_value(text: str, path: AnyPath, on_reject: OnReject) -> Iterator[tuple[int, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        on_reject(str(path), Rejection("bad_text_line", f"neither JSON nor JSON lines ({error})"))
        return
    yield from enumerate(value if isinstance(value, list) else [value], start=1)


def _may_name_split(line: str) -> bool:
    """Without parsing it; a writer may escape any letter."""
    return '"split"' in line or "\\u00" in line


def _record(source: TextSource, name: str, text: str, value: dict[str, Any], where: str) -> TextRecord:
    """A text with its own `id` and `split` where the record has them."""
    split, own = value.get("split"), value.get("id")
    known = source.split if split is None or split == "" else source.splits.get(str(split)) or split_of(split)
    if known is None:
        raise UserError(
            f"{where}: text source {source.name!r}: unknown split {split!r}; say in "
            f"the source's `splits` whether it is trained on, such as {{{split!r}: train}} or {{{split!r}: heldout}}"
        )
    return TextRecord(str(own) if isinstance(own, str | int) and own != "" else name, text, known)


def _read_parquet(
    source: TextSource, handle: BinaryIO, path: AnyPath, stem: str, on_reject: OnReject, skim: bool
) -> Iterator[TextRecord]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    with parquet.ParquetFile(handle) as file:
        there = file.schema_arrow.names
        if source.text_key not in there:
            raise UserError(f"{path}: no column {source.text_key!r}; it has {', '.join(there)}")
        if skim and "split" not in there:
            return
        columns = [name for name in (source.text_key, "id", "split") if name in there]
        first = 1
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            number = first - 1
            try:
                for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                    for value in zip(*(_cells(batch.column(name)) for name in columns), strict=True):
                        number += 1
                        yield from _row(source, dict(zip(columns, value, strict=True)), number, path, stem, on_reject)
            except (ArrowException, OSError) as error:
                if not packed.is_damage(error):
                    raise
                lost = f"rows {number + 1} to {first + rows - 1} cannot be decoded: {error}"
                on_reject(f"{path}:{number + 1}", Rejection("bad_text_line", lost))
            first += rows


def _cells(column: Any) -> list[Any]:
    """The values of a column; of strings their bytes, so that one that is not UTF-8 costs no other."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_string(column.type):
        column = column.cast(pyarrow.binary())
    elif pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    return list(column.to_pylist())


def _row(
    source: TextSource, value: dict[str, Any], number: int, path: AnyPath, stem: str, on_reject: OnReject
) -> Iterator[TextRecord]:
    try:
        found = {name: cell.decode() if isinstance(cell, bytes) else cell for name, cell in value.items()}
    except UnicodeDecodeError as error:
        on_reject(f"{path}:{number}", Rejection("bad_text_line", f"not UTF-8 ({error})"))
        return
    text = found[source.text_key]
    if isinstance(text, str):
        yield _record(source, f"{stem}-{number}", text, found, f"{path}:{number}")
    else:
        on_reject(f"{path}:{number}", Rejection("bad_text_line", f"no string {source.text_key!r}"))
