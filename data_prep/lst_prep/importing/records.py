"""What a reader gives: the values of one record under the names that this program has for them, and where they are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from lst_prep.importing.config import Columns, ImportSource
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError


@dataclass(frozen=True)
class Part:
    """A stretch of one file, which is read from its begin to its end.

    Attributes:
        path: the file (or, of npy, one sample's tokens).
        begin, end: what a reader makes of it: row groups, bytes...; end 0: all.
        size: bytes that it takes to read.
    """

    path: str
    begin: int
    end: int
    size: int


@dataclass(frozen=True)
class Record:
    """One record. `values` holds the mapped columns that it has; `where` names file and row."""

    where: str
    values: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value of one of `Columns`; None: the record has none."""
        return self.values.get(name)


OnReject = Callable[[str, Rejection], None]
"""Called with where a record is, and why it cannot be read."""


class Reader(Protocol):
    """One format."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        """What there is to read, in order. Opens no more than it needs for that and for the names of columns.

        Raises:
            UserError: there is no such file, one that is damaged, or a column that is not in it.
            CannotRead: not now.
        """

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        """The records of one part, in order, in bounded memory.

        Raises:
            CannotRead: not now.
            UserError: the file is damaged beyond a record.
        """


def mapped(columns: Columns) -> dict[str, str]:
    """Our name -> the file's, of the columns that are mapped."""
    return {f.name: getattr(columns, f.name) for f in fields(columns) if getattr(columns, f.name)}


def require_columns(source: ImportSource, path: object, there: set[str]) -> None:
    """Refuse a mapping that names what is not in a file.

    Args:
        there: first parts of dotted names that the file has.

    Raises:
        UserError: names the file, the column, and those that are there.
    """
    for ours, theirs in mapped(source.columns).items():
        if theirs.split(".")[0] not in there and theirs not in there:
            raise UserError(
                f"source {source.name!r}: columns.{ours}: {path} has no {theirs!r}; it has "
                f"{', '.join(sorted(there)) or 'nothing'}"
            )


def pick(value: Any, name: str) -> Any:
    """`value["a"]["b"]` for `a.b`, or `value["a.b"]`; None where there is no such thing."""
    if not isinstance(value, Mapping):
        return None
    if name in value:
        return value[name]
    keys = name.split(".")
    for length in range(len(keys) - 1, 0, -1):
        found = pick(value.get(".".join(keys[:length])), ".".join(keys[length:]))
        if found is not None:
            return found
    return None


def record_of(where: str, value: Mapping[str, Any], columns: Columns, **own: Any) -> Record:
    """A record with the mapped columns of `value`; `own` are the format's own, where the mapping has none."""
    found = {ours: pick(value, theirs) for ours, theirs in mapped(columns).items()}
    return Record(where, {**own, **{name: v for name, v in found.items() if v is not None}})
