"""Row: one packed training sequence of exactly U units, and nothing about where it came from (contract 2)."""

from dataclasses import Field, dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Annotated, Any, Literal, cast, get_type_hints

import numpy as np
import xxhash

from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.patching.closing import closed_units
from megatron_lst.vocabulary import IGNORE, Vocabulary


@dataclass(frozen=True)
class RowStatistics:
    """Counts that metrics report; they do not enter the model.

    Attributes:
        tokens_by_source: realised raw tokens of each source in this row.
        aligned_documents, speech_documents: document chunks with speech, and how many of them were cut by
            alignment.
        clipped_patches: aligned patches that `max_length` split.
        skipped_documents: documents that were passed over: damaged (`data.on_damage=skip`), or an adaptation
            example or a conversation that is longer than a row.
        training_flops: of the row, forward and backward; 0 in rows that nobody trains on.
    """

    tokens_by_source: dict[str, int] = field(default_factory=dict)
    aligned_documents: int = 0
    speech_documents: int = 0
    clipped_patches: int = 0
    skipped_documents: int = 0
    training_flops: float = 0.0


@dataclass(frozen=True)
class ArrayField:
    """What is declared of an array of `Row`; everything that treats all arrays alike reads it from here.

    Attributes:
        axis: "token": [N]; "unit": [U].
        hashed: whether the array enters `Row.hash`: all that the model sees, and that no other array gives.
        counts: what its values are ordinals of in this row, "unit" or "document"; None: values of their own. Where rows
            are laid end to end, ordinals go on counting (`packed`).
        dtype: of its bytes.
        name: of the field.
    """

    axis: Literal["token", "unit"]
    hashed: bool = False
    counts: Literal["unit", "document"] | None = None
    dtype: type[np.integer[Any]] = np.int32
    name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """U units over N tokens. The model consumes `unit` and `closed` and knows nothing of strategies.

    To add a field, declare it here: checks of lengths, the hash, bytes between processes, files of rows and the joining
    of rows end to end read the declaration (`array_fields`). A field that is no array has a default, and is plain JSON
    or says how it is made `from_json`.

    Attributes:
        tokens: int32 [N].
        unit: int32 [N], u(t): non-decreasing by steps of 0 or 1, from 0 to U-1.
        closed: int32 [N], c(t), see `patching.closing`; within the token's own document.
        labels: int32 [N], the next token of the same document, IGNORE at document and row ends, on PAD and
            before a token that is read and not learnt.
        document: int32 [N], ordinal of the token's document chunk in this row, from 0; PAD units at the row's
            end count as one more document.
        unit_document: int32 [U], the same for units.
        patch_length: int32 [U], tokens of each unit.
        index: global row number i of the run.
        document_ids: the id of each document chunk, for errors and inspection ("" for padding).
        statistics: counts for metrics.
    """

    tokens: Annotated[np.ndarray, ArrayField("token", hashed=True)]
    unit: Annotated[np.ndarray, ArrayField("token", hashed=True, counts="unit")]
    closed: Annotated[np.ndarray, ArrayField("token", hashed=True, counts="unit")]
    labels: Annotated[np.ndarray, ArrayField("token", hashed=True)]
    document: Annotated[np.ndarray, ArrayField("token", hashed=True, counts="document")]
    unit_document: Annotated[np.ndarray, ArrayField("unit", counts="document")]
    patch_length: Annotated[np.ndarray, ArrayField("unit")]
    index: int = 0
    document_ids: tuple[str, ...] = field(default=(), metadata={"from_json": tuple})
    statistics: RowStatistics = field(
        default_factory=RowStatistics, metadata={"from_json": lambda counts: RowStatistics(**counts)}
    )

    @cached_property
    def hash(self) -> int:
        """64-bit hash of all that the model sees; `batch_hash` is made of these."""
        digest = xxhash.xxh3_64()
        for declared in array_fields(type(self)):
            if declared.hashed:
                digest.update(np.ascontiguousarray(getattr(self, declared.name), declared.dtype).tobytes())
        return digest.intdigest()

    @property
    def units(self) -> int:
        return len(self.patch_length)

    def size(self, axis: Literal["token", "unit"]) -> int:
        """N or U."""
        return len(self.tokens) if axis == "token" else self.units

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a row whose maps would leak or crash. Who makes rows for an engine asks once, where they are made.

        Raises:
            DamagedDataError: names the row, the document and what is wrong.
        """
        n, u = len(self.tokens), self.unit

        def refuse(what: str, token: int) -> None:
            chunk = int(self.document[token]) if 0 <= token < n else -1
            name = self.document_ids[chunk] if 0 <= chunk < len(self.document_ids) else "?"
            raise DamagedDataError(f"row {self.index}, document {name!r}, token {token}: {what}")

        def first(bad: np.ndarray) -> int:
            return int(np.argmax(bad))

        for declared in array_fields(type(self)):
            if (found := len(getattr(self, declared.name))) != self.size(declared.axis) or not found:
                raise DamagedDataError(
                    f"row {self.index}: {declared.name} has {found} entries for {n} tokens in {self.units} units"
                )
        step = np.diff(u, prepend=-1)  # [N], units begun at each token
        if (bad := (step < 0) | (step > 1)).any() or u[0] != 0:
            refuse("the unit map must rise by steps of 0 or 1 from 0", first(bad))
        if u[-1] != self.units - 1 or not np.array_equal(np.bincount(u, minlength=self.units), self.patch_length):
            raise DamagedDataError(f"row {self.index}: patch lengths do not match the unit map")
        if (bad := np.diff(self.closed, prepend=0) < 0).any():
            refuse("the closing map must not decrease", first(bad))
        if (bad := self.closed > u).any():
            refuse("reads a unit that is not closed: c(t) > u(t)", first(bad))
        starts = np.flatnonzero(np.diff(self.document, prepend=-1))  # [documents], first token of each
        first_unit = np.repeat(u[starts], np.diff(np.append(starts, n)))  # [N], of the token's document
        if (bad := self.closed < first_unit).any():
            refuse(
                "no closed unit within its own document (a chunk must begin with a non-speech token)",
                first(bad),
            )
        speech = vocabulary.is_speech(self.tokens)
        if (bad := speech & (np.diff(self.document, prepend=-1) != 0)).any():
            refuse("a document begins with speech and no marker", first(bad))
        if (bad := (self.tokens < 0) | (self.tokens >= vocabulary.used_size)).any():
            refuse(f"token id {int(self.tokens[first(bad)])} is outside the vocabulary", first(bad))
        labelled = self.labels != IGNORE
        if (bad := labelled & ((self.labels < 0) | (self.labels >= vocabulary.used_size))).any():
            refuse(f"label {int(self.labels[first(bad)])} is outside the vocabulary", first(bad))
        if (bad := ~speech & (self.patch_length[u] != 1)).any():
            refuse("a non-speech token must be a unit of its own", first(bad))
        if (fault := vocabulary.frame_fault(self.tokens)) is not None:
            refuse(fault[1], fault[0])


def array_fields(row_type: type[Row] = Row) -> tuple[ArrayField, ...]:
    """The arrays of a row, in the order of their declaration."""
    return _declared(cast(Any, row_type))[0]


def scalar_fields(row_type: type[Row] = Row) -> tuple[Field[Any], ...]:
    """The fields that are no arrays."""
    return _declared(cast(Any, row_type))[1]


@cache
def _declared(row_type: Any) -> tuple[tuple[ArrayField, ...], tuple[Field[Any], ...]]:
    arrays, scalars = [], []
    hints = get_type_hints(row_type, include_extras=True)
    for declared in fields(row_type):
        array = next(iter(getattr(hints[declared.name], "__metadata__", ())), None)
        if array is None:
            scalars.append(declared)
        else:
            arrays.append(replace(array, name=declared.name))
    return tuple(arrays), tuple(scalars)


def batch_hash(hashes: list[int]) -> str:
    """Hash of a global batch: its rows' hashes in global order."""
    return xxhash.xxh3_64(np.array(hashes, np.uint64).tobytes()).hexdigest()


@dataclass(frozen=True)
class Chunk:
    """A stretch of one document as it goes into a row: tokens grouped into units.

    Attributes:
        tokens: int32 [n].
        patch_length: int32 [m], sum = n, all >= 1.
        closes_late: bool [m], see `patching.closing`.
        document_id: for messages.
        learnt: bool [n], which tokens a label asks for; the others are read and not learnt (the prompts of adaptation,
            SPEC 9, and what is not the assistant's in a conversation, SPEC 7). None: all.
    """

    tokens: np.ndarray
    patch_length: np.ndarray
    closes_late: np.ndarray
    document_id: str = ""
    learnt: np.ndarray | None = None


def assemble_row(
    chunks: list[Chunk],
    units: int,
    vocabulary: Vocabulary,
    index: int = 0,
    statistics: RowStatistics | None = None,
) -> Row:
    """Lay chunks one after the other, pad with PAD units to exactly `units`, and compute every map.

    Args:
        chunks: each one document (or the part of it that fits), together at most `units` units.

    Raises:
        UserError: a chunk is empty, or they do not fit.
    """
    for chunk in chunks:
        if not len(chunk.tokens):
            raise UserError(f"document {chunk.document_id!r} is empty")
    used = sum(len(c.patch_length) for c in chunks)
    if used > units:
        raise UserError(f"row {index}: {used} units do not fit into {units}")
    if used < units:
        pad = units - used
        chunks = [
            *chunks,
            Chunk(np.full(pad, vocabulary.pad, np.int32), np.ones(pad, np.int32), np.zeros(pad, bool), ""),
        ]
    tokens = np.concatenate([c.tokens for c in chunks]).astype(np.int32)  # [N]
    patch_length = np.concatenate([c.patch_length for c in chunks]).astype(np.int32)  # [U]
    late = np.concatenate([c.closes_late for c in chunks])  # [U]
    ordinal = np.arange(len(chunks), dtype=np.int32)
    document = np.repeat(ordinal, [len(c.tokens) for c in chunks])  # [N]
    labels = np.empty_like(tokens)
    labels[:-1], labels[-1] = tokens[1:], IGNORE  # the next token
    labels[:-1][document[1:] != document[:-1]] = IGNORE  # nothing predicts the next document's BOS
    labels[tokens == vocabulary.pad] = IGNORE
    start = 0
    for chunk in chunks:
        end = start + len(chunk.tokens)
        if chunk.learnt is not None:
            labels[start : end - 1][~chunk.learnt[1:]] = IGNORE  # the label of a token is the next one
        start = end
    return Row(
        tokens=tokens,
        unit=np.repeat(np.arange(units, dtype=np.int32), patch_length),  # [N]
        closed=closed_units(patch_length, late),
        labels=labels,
        document=document,
        unit_document=np.repeat(ordinal, [len(c.patch_length) for c in chunks]),  # [U]
        patch_length=patch_length,
        index=index,
        document_ids=tuple(c.document_id for c in chunks),
        statistics=statistics or RowStatistics(),
    )
