"""The rows of a micro-batch laid end to end on one packed token axis and one packed unit axis (SPEC 1).

Every mask becomes an interval: a query at position t sees keys [k_start[t], k_end[t]), both non-decreasing.  That one
form covers the local window, causality over units and the decoder's cross-attention, always inside one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.patching.row import ArrayField, Row, array_fields
from megatron_lst.vocabulary import IGNORE


@dataclass(frozen=True)
class PackedRows:
    """b rows of U units, N tokens together with padding, as int32 numpy arrays.

    Padding tokens at the end belong to no unit, see themselves alone, and have loss 0.

    Attributes:
        tokens, labels: [N].
        position: [N], RoPE index of a token, counted from its row's start.
        unit: [N], packed unit of each token (row * U + u); -1 on padding.
        closed: [N], packed c(t); on padding the last unit.
        token_start, token_end: [N], token interval of local self-attention: same document, window, causal.
        cross_start, cross_end: [N], unit interval of the decoder's cross-attention.
        patch_start, patch_end: [b*U], token interval of each unit.
        unit_position: [b*U], RoPE index of a unit, counted from its row's start.
        unit_start, unit_end: [b*U], unit interval of global attention: same document, causal.
        rows, units: b and U.
    """

    tokens: np.ndarray
    labels: np.ndarray
    position: np.ndarray
    unit: np.ndarray
    closed: np.ndarray
    token_start: np.ndarray
    token_end: np.ndarray
    cross_start: np.ndarray
    cross_end: np.ndarray
    patch_start: np.ndarray
    patch_end: np.ndarray
    unit_position: np.ndarray
    unit_start: np.ndarray
    unit_end: np.ndarray
    rows: int
    units: int


def first_of_run(ids: np.ndarray) -> np.ndarray:
    """For each position the first position of its run of equal ids. int [n] -> int32 [n]."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1))  # [runs]
    return np.repeat(starts, np.diff(np.append(starts, len(ids)))).astype(np.int32)


def seen_by(start: np.ndarray, end: np.ndarray, keys: int) -> np.ndarray:
    """Intervals turned round, once for all layers: `lst_kernels.queries_of_keys`, counted.

    Args:
        start, end: [n], keys [start, end) that each query sees; both non-decreasing, from 0 to `keys`.

    Returns:
        int32 [2, keys]: key j is seen by queries [first, last), those whose interval has begun by j and ends past it.
    """
    counts = (np.bincount(bound, minlength=keys)[:keys] for bound in (end, start))
    return np.stack([np.cumsum(count, dtype=np.int32) for count in counts])


def self_mask(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The mask of self-attention, [4, n]: intervals of queries [n], and those of keys."""
    return np.stack((start, end, *seen_by(start, end, len(start))))


def pack_rows(rows: Sequence[Row], window: int, window_units: int, pad: int, multiple: int = 256) -> PackedRows:
    """Lay rows end to end.

    Args:
        rows: at least one; all of the same U.
        window: W, tokens that local self-attention sees.
        window_units: W_u, closed units that the decoder sees.
        pad: the PAD token.
        multiple: N is rounded up to a multiple of this.
    """
    units = rows[0].units
    assert all(r.units == units for r in rows), "rows of one micro-batch have the same number of units"
    lengths = np.array([len(r.tokens) for r in rows])  # [b]
    real = int(lengths.sum())
    padded = -(-real // multiple) * multiple  # N: rounded up
    extra = np.arange(real, padded, dtype=np.int32)  # positions of padding
    row_of_token = np.repeat(np.arange(len(rows)), lengths)  # [N]
    token_offset = np.concatenate([[0], np.cumsum(lengths)[:-1]])  # [b], each row's first token

    # Documents are numbered over the whole axis, so that a run of equal numbers is one document of one row.
    documents = max(int(r.document[-1]) + 1 for r in rows)
    row_of = {"token": row_of_token, "unit": np.repeat(np.arange(len(rows)), units)}
    stride = {"unit": units, "document": documents, None: 0}

    def join(declared: ArrayField) -> np.ndarray:
        values = np.concatenate([getattr(r, declared.name) for r in rows])  # [tokens] or [b*U]
        return (values + row_of[declared.axis] * stride[declared.counts]).astype(np.int32)

    def padded_with(values: np.ndarray, fill: np.ndarray | int) -> np.ndarray:
        return np.concatenate([values, np.broadcast_to(fill, len(extra))]).astype(np.int32)

    joined = {declared.name: join(declared) for declared in array_fields(type(rows[0]))}
    document, unit, closed, patch_length = (joined[n] for n in ("document", "unit", "closed", "patch_length"))
    index = np.arange(real, dtype=np.int32)
    unit_index = np.arange(len(rows) * units, dtype=np.int32)
    unit_start = first_of_run(joined["unit_document"])  # [b*U], the first unit of each unit's document
    cross_start = np.maximum(unit_start[unit], closed - window_units + 1)  # [tokens], the last W_u closed units
    patch_end = np.cumsum(patch_length, dtype=np.int32)  # [b*U]: patches lie end to end
    last_unit = len(rows) * units - 1
    return PackedRows(
        tokens=padded_with(joined["tokens"], pad),
        labels=padded_with(joined["labels"], IGNORE),
        position=padded_with(index - token_offset[row_of_token], 0),
        unit=padded_with(unit, -1),
        closed=padded_with(closed, last_unit),
        token_start=padded_with(np.maximum(first_of_run(document), index - window + 1), extra),
        token_end=padded_with(index + 1, extra + 1),
        cross_start=padded_with(cross_start, last_unit),
        cross_end=padded_with(closed + 1, last_unit + 1),
        patch_start=patch_end - patch_length,
        patch_end=patch_end,
        unit_position=np.tile(np.arange(units, dtype=np.int32), len(rows)),
        unit_start=unit_start,
        unit_end=unit_index + 1,
        rows=len(rows),
        units=units,
    )
