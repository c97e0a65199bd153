"""Rows as bytes, for other processes, and as .npz files, to look at them or train on them again; no pickle.

Both forms follow the declaration of `Row`: a field that is added there is carried without a change here.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import DamagedDataError
from megatron_lst.files import replacing
from megatron_lst.patching.row import Row, array_fields, scalar_fields

_ALIGNMENT = 8
"""Every part begins at a multiple of so many bytes, so that arrays are views of what was received."""


def row_to_bytes(row: Row) -> np.ndarray:
    """A whole row as uint8 [n], n a multiple of 8, so that rows laid end to end stay aligned.

        int64 N, U, bytes of JSON, hash | arrays in the order of their declaration | JSON of the other fields

    A row that came as bytes is not made into bytes again.
    """
    received = row.__dict__.get("encoded")
    if received is not None:
        return np.asarray(received)
    scalars = json.dumps(_scalars(row)).encode()
    header = np.array([len(row.tokens), row.units, len(scalars), np.uint64(row.hash).astype(np.int64)], np.int64)
    arrays = [np.ascontiguousarray(getattr(row, declared.name), declared.dtype) for declared in array_fields(type(row))]
    return np.concatenate([_aligned(part) for part in (header, *arrays, np.frombuffer(scalars, np.uint8))])


def rows_from_bytes(data: np.ndarray, row_type: type[Row] = Row) -> list[Row]:
    """What `row_to_bytes` made of rows, laid end to end: uint8 [n] -> equal rows, equal hashes.

    Their arrays are views of `data`.
    """
    rows, start = [], 0

    def take(dtype: type[np.generic], count: int) -> np.ndarray:
        nonlocal start
        size = count * np.dtype(dtype).itemsize
        part = data[start : start + size].view(dtype)
        start += -(-size // _ALIGNMENT) * _ALIGNMENT  # rounded up
        return part

    while start < len(data):
        begin = start
        tokens, units, length, digest = take(np.int64, 4)  # N, U, bytes of JSON, hash
        size = {"token": int(tokens), "unit": int(units)}
        arrays: dict[str, Any] = {d.name: take(d.dtype, size[d.axis]) for d in array_fields(row_type)}
        row = row_type(**arrays, **_from_json(json.loads(take(np.uint8, int(length)).tobytes()), row_type))
        row.__dict__.update(hash=int(digest.astype(np.uint64)), encoded=data[begin:start])
        rows.append(row)
    return rows


def save_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows, whole or not at all; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{i}.{d.name}": getattr(row, d.name) for i, row in enumerate(rows) for d in array_fields(type(row))}
    arrays["about"] = np.frombuffer(json.dumps([_scalars(row) for row in rows]).encode(), np.uint8)
    with replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_rows(path: str | Path, row_type: type[Row] = Row) -> list[Row]:
    """Read what `save_rows` wrote: equal rows, equal hashes.

    Raises:
        DamagedDataError: the file is cut short, is something else, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return [
                row_type(
                    **{d.name: file[f"{i}.{d.name}"] for d in array_fields(row_type)}, **_from_json(about, row_type)
                )
                for i, about in enumerate(json.loads(file["about"].tobytes()))
            ]
    except Exception as error:  # zipfile, numpy and json each have their own
        raise DamagedDataError(f"{path}: no rows can be read from it: {error}") from None


def _scalars(row: Row) -> dict[str, Any]:
    """The fields that are no arrays, as JSON takes them."""
    values = {declared.name: getattr(row, declared.name) for declared in scalar_fields(type(row))}
    return {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}  # type: ignore[arg-type]


def _from_json(values: dict[str, Any], row_type: type[Row]) -> dict[str, Any]:
    """The inverse of `_scalars`; a field that did not exist when the row was written keeps its default."""
    declared = {field.name: field for field in scalar_fields(row_type)}
    return {name: declared[name].metadata.get("from_json", _as_it_is)(value) for name, value in values.items()}


def _as_it_is(value: Any) -> Any:
    return value


def _aligned(part: np.ndarray) -> np.ndarray:
    """An array's bytes, followed by zeros up to the next multiple of 8: uint8 [n]."""
    flat = part.view(np.uint8)
    return np.append(flat, np.zeros(-len(flat) % _ALIGNMENT, np.uint8))
