"""Parquet, and Arrow as Hugging Face `datasets` writes it with `save_to_disk`. Read by pyarrow, batch by batch."""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from lst_prep.importing.config import ImportSource
from lst_prep.importing.readers.paths import damage_named, source_files
from lst_prep.importing.records import OnReject, Part, Reader, Record, mapped, record_of, require_columns
from lst_prep.places import AnyPath, path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection

_ROWS = 64
"""Rows that are in memory at once: ten minutes of speech at 100 tokens a second are half a megabyte."""


def _value(scalar: pa.Scalar) -> Any:
    """A cell as numpy array where it is a list of numbers, or of lists of numbers of one length; else plain Python."""
    if isinstance(scalar, pa.ExtensionScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    if not isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return scalar.as_py()
    values = scalar.values
    if values.null_count:
        return scalar.as_py()
    if pa.types.is_integer(values.type):
        return values.to_numpy(zero_copy_only=False)
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    if nested or pa.types.is_fixed_size_list(values.type):
        flat, lengths = values.flatten(), np.asarray(pa.compute.list_value_length(values))
        if pa.types.is_integer(flat.type) and not flat.null_count and len(set(lengths.tolist())) == 1:
            return flat.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
    return scalar.as_py()


def _records(
    source: ImportSource, path: str, batch: pa.RecordBatch, first: int, on_reject: OnReject, **own: Any
) -> Iterator[Record]:
    """The rows of a batch; rows count from 0."""
    names = {theirs.split(".")[0] if theirs not in batch.schema.names else theirs for theirs in _theirs(source)}
    for row in range(batch.num_rows):
        where = f"{path}: row {first + row}"
        try:
            value = {name: _value(batch.column(name)[row]) for name in names}
        except (ValueError, pa.ArrowException) as error:
            on_reject(where, Rejection("unreadable_record", str(error)))
            continue
        yield record_of(where, value, source.columns, id=f"{PurePath(path).stem}-{first + row}", **own)


def _theirs(source: ImportSource) -> list[str]:
    return list(mapped(source.columns).values())


class ParquetReader:
    """Parts are row groups."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        found = []
        for path in source_files(source, (".parquet", ".pq"), inputs):
            with damage_named(source, path), inputs.open(path) as raw, parquet.ParquetFile(raw) as file:
                require_columns(source, path, set(file.schema_arrow.names))
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).total_byte_size
                    found.append(Part(str(path), group, group + 1, size))
        return found

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        with damage_named(source, part.path), inputs.open(part.path) as raw, parquet.ParquetFile(raw) as file:
            names = file.schema_arrow.names
            columns = sorted({c if c in names else c.split(".")[0] for c in _theirs(source)})
            row = sum(file.metadata.row_group(group).num_rows for group in range(part.begin))
            for batch in file.iter_batches(_ROWS, row_groups=range(part.begin, part.end), columns=columns):
                yield from _records(source, part.path, batch, row, on_reject)
                row += batch.num_rows


class ArrowReader:
    """Parts are .arrow files; a folder of splits gives each record its split."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        found = []
        for path in self._files(source, path_of(source.path), inputs):
            with damage_named(source, path), inputs.open(path) as file:
                require_columns(source, path, set(_batches(file)[0].names))
            found.append(Part(str(path), 0, 0, inputs.size(path)))
        return found

    def _files(self, source: ImportSource, path: AnyPath, inputs: Inputs) -> list[AnyPath]:
        """The data files of a saved data set, in its own order."""
        if inputs.is_file(path / "dataset_dict.json"):
            splits = self._json(source, path / "dataset_dict.json", inputs).get("splits", [])
            return [file for split in splits for file in self._files(source, path / split, inputs)]
        if inputs.is_file(path / "state.json"):
            listed = self._json(source, path / "state.json", inputs).get("_data_files", [])
            return [path / entry["filename"] for entry in listed]
        return source_files(source, (".arrow",), inputs)

    @staticmethod
    def _json(source: ImportSource, path: AnyPath, inputs: Inputs) -> dict[str, Any]:
        with damage_named(source, path):
            content: dict[str, Any] = json.loads(inputs.read_bytes(path))
        return content

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        own, folder = {}, path_of(part.path).parent
        if not source.columns.split and inputs.is_file(folder.parent / "dataset_dict.json"):
            own["split"] = folder.name
        with damage_named(source, part.path), inputs.open(part.path) as file:
            row = 0
            for batch in _batches(file)[1]:
                yield from _records(source, part.path, batch, row, on_reject, **own)
                row += batch.num_rows


def _batches(file: BinaryIO) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of either kind of Arrow file."""
    magic = file.read(6)
    file.seek(0)
    if magic != b"ARROW1":
        stream = ipc.open_stream(file)
        return stream.schema, iter(stream)
    whole = ipc.open_file(file)
    return whole.schema, (whole.get_batch(i) for i in range(whole.num_record_batches))


READERS: dict[str, Reader] = {"parquet": ParquetReader(), "arrow": ArrowReader()}
