"""A row declares its fields once: hash, checks, joining, bytes and files follow, also for a field that is added."""

import ast
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

import megatron_lst
from megatron_lst.errors import DamagedDataError
from megatron_lst.patching.packed import pack_rows
from megatron_lst.patching.row import ArrayField, Chunk, Row, RowStatistics, array_fields, assemble_row, scalar_fields
from megatron_lst.patching.serialisation import load_rows, row_to_bytes, rows_from_bytes, save_rows
from megatron_lst.vocabulary import Vocabulary

HERE = Path(__file__).parent
V = Vocabulary(text_size=60, speech_size=50, multiple=128)


def toy_rows() -> list[Row]:
    """Two rows with every kind of unit: text, a full and a truncated patch, PAD; and every count."""
    tokens = np.concatenate([[V.bos, 7, V.speech_marker], 60 + np.arange(6), [V.eos]]).astype(np.int32)
    late = np.array([0, 0, 0, 0, 1, 0], bool)
    one = Chunk(tokens, np.array([1, 1, 1, 4, 2, 1], np.int32), late, "book-1/ü")
    two = Chunk(
        np.array([V.bos, 8, 9, V.eos], np.int32), np.ones(4, np.int32), np.zeros(4, bool), "book-2", np.arange(4) > 2
    )
    first = assemble_row([one, two], 12, V, 5, RowStatistics({"books": 14}, 1, 2, 3, 4))
    return [first, assemble_row([two], 12, V, 6)]


@dataclass(frozen=True, kw_only=True, eq=False)
class LongerRow(Row):
    """A row with one array more, and one field more that is none: a line each."""

    speaker: Annotated[np.ndarray, ArrayField("token", counts="document")]
    pitch: Annotated[np.ndarray, ArrayField("unit", hashed=True)]
    languages: tuple[str, ...] = dataclass_field(default=(), metadata={"from_json": tuple})


def longer(row: Row, languages: tuple[str, ...] = ("de",)) -> LongerRow:
    old = {name: getattr(row, name) for name in Row.__dataclass_fields__}
    pitch = np.arange(row.units, dtype=np.int32) + 100
    return LongerRow(**old, speaker=row.document.copy(), pitch=pitch, languages=languages)


def check_equal(found: Row, expected: Row) -> None:
    kind = type(expected)
    assert type(found) is kind
    for field in array_fields(kind):
        value = getattr(found, field.name)
        np.testing.assert_array_equal(value, getattr(expected, field.name), field.name)
        assert value.dtype == field.dtype
    for field in scalar_fields(kind):
        assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert found.hash == expected.hash == replace(found).hash, "the hash that travelled is the one of the arrays"


@pytest.mark.parametrize("kind", [Row, LongerRow])
def test_rows_come_back_equal(tmp_path: Path, kind: type[Row]) -> None:
    """As bytes and as a file; `LongerRow` declares more, and nothing else was told."""
    rows = toy_rows() if kind is Row else [longer(row) for row in toy_rows()]
    save_rows(tmp_path / "faults" / "step.npz", rows)
    together = np.concatenate([row_to_bytes(row) for row in rows])
    for again in (load_rows(tmp_path / "faults" / "step.npz", kind), rows_from_bytes(together, kind)):
        assert len(again) == len(rows)
        for found, expected in zip(again, rows, strict=True):
            check_equal(found, expected)
    assert [p.name for p in (tmp_path / "faults").iterdir()] == ["step.npz"]


def test_a_row_that_came_as_bytes_is_not_made_into_bytes_again() -> None:
    data = row_to_bytes(toy_rows()[0])
    (row,) = rows_from_bytes(data)
    assert np.shares_memory(row_to_bytes(row), data) and np.shares_memory(row.tokens, data)
    changed = replace(row, labels=row.labels + 1)
    assert not np.array_equal(row_to_bytes(changed), data), "control: another row is other bytes"
    assert changed.hash != row.hash


def test_hash_check_and_packing_follow_the_declaration() -> None:
    row = longer(toy_rows()[0])
    row.check(V)
    assert row.hash != toy_rows()[0].hash
    assert replace(row, pitch=row.pitch + 1).hash != row.hash
    assert replace(row, languages=("fr",)).hash == row.hash, "control: what the model does not see"
    assert replace(row, unit_document=row.unit_document + 1).hash == row.hash, "declared as not hashed"
    for field in array_fields(LongerRow):
        name = r"\w+" if field.name in ("tokens", "patch_length") else field.name  # they set the others' lengths
        with pytest.raises(DamagedDataError, match=rf"row 5: {name} has \d+ entries for"):
            replace(row, **{field.name: np.append(getattr(row, field.name), 0)}).check(V)
    packed, plain = (pack_rows(rows, 4, 1, V.pad) for rows in ([row, row], [toy_rows()[0]] * 2))
    np.testing.assert_array_equal(packed.token_start, plain.token_start)


def names_in_collections(source: str) -> list[set[str]]:
    """Strings of each literal tuple, list, set or dict (its keys) in a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        found.append({p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)})
    return found


def lists_the_fields(source: str) -> bool:
    """Whether a module names most arrays of a row in a literal of its own: a second declaration."""
    arrays = {field.name for field in array_fields()}
    return any(len(names & arrays) > len(arrays) // 2 + 1 for names in names_in_collections(source))


def test_nobody_else_lists_the_fields() -> None:
    root = Path(megatron_lst.__file__).parent
    assert [p for p in root.rglob("*.py") if lists_the_fields(p.read_text())] == []
    control = '_ARRAYS = ("tokens", "unit", "closed", "labels", "document", "unit_document", "patch_length")'
    assert lists_the_fields(control)
    assert lists_the_fields('A = {"tokens": 1, "unit": 2, "closed": 3, "labels": 4, "document": 5}')


def test_files_of_the_first_format_are_read() -> None:
    """rows-format-1.npz was written before fields were declared once."""
    found = load_rows(HERE / "rows-format-1.npz")
    assert [row.hash for row in found] == [68041356056272204, 7369403385625115526]
    for row, expected in zip(found, toy_rows(), strict=True):
        check_equal(row, expected)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "x.npz", about=np.array([Bomb()], dtype=object))
    with pytest.raises(DamagedDataError):
        load_rows(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    save_rows(tmp_path / "x.npz", toy_rows())
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedDataError, match=r"x\.npz"):
        load_rows(tmp_path / "x.npz")
