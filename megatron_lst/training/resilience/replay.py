"""Rows in a .npz file without pickle: the batch that broke a run, to be looked at or trained on again."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_lst.errors import DamagedDataError
from megatron_lst.files import replacing
from megatron_lst.patching.row import Row, RowStatistics

_ARRAYS = ("tokens", "unit", "closed", "labels", "document", "unit_document", "patch_length")


def save_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows, whole or not at all; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{i}.{name}": getattr(row, name) for i, row in enumerate(rows) for name in _ARRAYS}
    about = [
        {"index": row.index, "document_ids": row.document_ids, "statistics": asdict(row.statistics)} for row in rows
    ]
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_rows(path: str | Path) -> list[Row]:
    """Read what `save_rows` wrote: equal rows, equal hashes.

    Raises:
        DamagedDataError: the file is cut short, is something else, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            return [
                Row(
                    **{name: file[f"{i}.{name}"] for name in _ARRAYS},
                    index=int(row["index"]),
                    document_ids=tuple(row["document_ids"]),
                    statistics=RowStatistics(**row["statistics"]),
                )
                for i, row in enumerate(about)
            ]
    except Exception as error:  # zipfile, numpy and json each have their own
        raise DamagedDataError(f"{path}: no rows can be read from it: {error}") from None
