"""JSON lines, plain or compressed, and NeMo's manifests, which are JSON lines with names of their own."""

import json
from collections.abc import Iterator
from typing import IO, Any

from lst_prep.importing.config import ImportSource
from lst_prep.importing.readers.paths import damage_named, source_files
from lst_prep.importing.records import OnReject, Part, Reader, Record, record_of, require_columns
from lst_prep.packed import SUFFIXES as PACKED
from lst_prep.packed import unpacked
from lst_prep.places import AnyPath, path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection

SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in ("", *PACKED))
_PART_BYTES = 1 << 26
_PEEK = 100
"""Records whose keys are looked at before anything is read."""


def read_lines(
    source: ImportSource, path: AnyPath, inputs: Inputs, on_reject: OnReject, begin: int = 0, end: int = 0
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(where, number, object) of each line of bytes [begin, end) of a file; a line belongs where its first byte is.

    Lines are numbered from 1. Blank lines are passed over; one that is no JSON object is given to `on_reject`.
    """
    with damage_named(source, path), inputs.open(path) as raw, unpacked(raw, path) as file:
        number = _lines_before(file, begin)
        while line := file.readline():
            number += 1
            begin += len(line)
            where = f"{path}: line {number}"
            if line.strip():
                try:
                    value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    if not isinstance(value, dict):
                        raise ValueError("not a JSON object")
                    yield where, number, value
                except (ValueError, RecursionError) as error:
                    on_reject(where, Rejection("unreadable_record", str(error)))
            if end and begin >= end:
                break


def _lines_before(file: IO[bytes], begin: int) -> int:
    """Go to a position; returns the number of lines before it."""
    count, left = 0, begin
    while left:
        block = file.read(min(left, 1 << 22))
        if not block:
            break
        count, left = count + block.count(b"\n"), left - len(block)
    return count


class LinesReader:
    """Parts are stretches of whole lines; a packed file is one part."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        found = []
        for path in source_files(source, SUFFIXES, inputs):
            self._require_columns(source, path, inputs)
            size = inputs.size(path)
            if path.name.lower().endswith(PACKED):
                found.append(Part(str(path), 0, 0, size))
                continue
            with inputs.open(path) as file:
                begin = 0
                while begin < size:
                    file.seek(min(begin + _PART_BYTES, size))
                    file.readline()
                    end = min(file.tell(), size)
                    found.append(Part(str(path), begin, end, end - begin))
                    begin = end
        return found

    def _require_columns(self, source: ImportSource, path: AnyPath, inputs: Inputs) -> None:
        there: set[str] = set()
        for count, (_, _, value) in enumerate(read_lines(source, path, inputs, lambda *_: None)):
            there |= set(value)
            if count >= _PEEK:
                break
        if there:
            require_columns(source, path, there)

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        path = path_of(part.path)
        for where, number, value in read_lines(source, path, inputs, on_reject, part.begin, part.end):
            yield record_of(where, value, source.columns, id=f"{path.name.split('.')[0]}-{number}", **self._own(value))

    def _own(self, value: dict[str, Any]) -> dict[str, Any]:
        return {}


class NemoReader(LinesReader):
    """`duration`, `text`, `speaker`; lines with an `offset` are segments of their `audio_filepath`."""

    def _own(self, value: dict[str, Any]) -> dict[str, Any]:
        own = {"seconds": value.get("duration"), "text": value.get("text"), "speaker": value.get("speaker")}
        if value.get("offset") is not None:
            own |= {"recording": value.get("audio_filepath"), "start": value["offset"]}
        return {name: found for name, found in own.items() if found is not None}


READERS: dict[str, Reader] = {"jsonl": LinesReader(), "nemo": NemoReader()}
