"""Text sources: every kind of file, what is wrong with them, and chunks."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard

from lst_prep.config import PrepConfig, TextSource
from lst_prep.pipeline import run
from lst_prep.rejection import Rejection
from lst_prep.text import chunk, document_hash
from lst_prep.text_files import heldout_texts, read_records, source_files
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.errors import UserError

ROWS = [
    {"id": "a", "text": "In the beginning was the word."},
    {"id": "b", "text": "A sentence that is held out.", "split": "heldout"},
    {"id": "c", "text": "Before it. A sentence that is held out! After it."},
    {"id": "d", "text": "in the beginning, was the WORD"},
]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
}


def lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(path: Path, **options: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(id, text, split) of every record, and the details of what was rejected."""
    rejected: list[str] = []

    def reject(where: str, rejection: Rejection) -> None:
        rejected.append(f"{where}: {rejection}")

    found = read_records(TextSource("toy", str(path), **options), path, reject)
    return [(r.id, r.text, r.split) for r in found], rejected


def write_parquet(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.Table.from_pydict({name: [row.get(name) for row in rows] for name in columns})
    parquet.write_table(table, path, row_group_size=2)


@pytest.mark.parametrize("packed", PACKERS)
def test_jsonl_packed_or_not(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.jsonl{packed}"
    path.write_bytes(PACKERS[packed](lines()))
    found, rejected = read(path)
    assert found == [(str(r["id"]), r["text"], r.get("split", "train")) for r in ROWS]
    assert rejected == []
    assert source_files(TextSource("toy", str(tmp_path))) == [path]


@pytest.mark.parametrize("packed", [".zst", ".xz", ".gz"])
def test_a_file_that_breaks_off_gives_what_it_holds(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.jsonl{packed}"
    whole = PACKERS[packed](lines() * 2000 + np.random.default_rng(0).bytes(100_000).hex().encode())
    path.write_bytes(whole[: len(whole) // 2])
    found, rejected = read(path)
    assert found[0][0] == "a"
    assert len(rejected) == 1
    assert "bad_text_line" in rejected[0]


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ROWS)
    (tmp_path / "x.jsonl").write_bytes(lines())
    assert read(tmp_path / "x.parquet") == read(tmp_path / "x.jsonl")
    write_parquet(tmp_path / "y.parquet", [{"content": "One."}, {"content": None}, {"content": "Two."}])
    found, rejected = read(tmp_path / "y.parquet", text_key="content", split="heldout")
    assert found == [("toy/y-1", "One.", "heldout"), ("toy/y-3", "Two.", "heldout")]
    assert rejected == [f"{tmp_path}/y.parquet:2: bad_text_line: no string 'content'"]


def test_a_parquet_file_without_the_column_is_the_users_mistake(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [{"content": "One."}])
    with pytest.raises(UserError, match="no column 'text'; it has content"):
        read(tmp_path / "x.parquet")


def test_a_corrupt_parquet_file_is_rejected_and_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ROWS)
    whole = (tmp_path / "x.parquet").read_bytes()
    for name, content in {"short": whole[:-20], "empty": b"", "text": b"no parquet at all"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        found, rejected = read(tmp_path / f"{name}.parquet")
        assert found == []
        assert len(rejected) == 1
        assert "bad_text_line" in rejected[0]


def test_parquet_without_pyarrow_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one rejection among many: all of the source would be missing."""
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read(tmp_path / "x.parquet")


def test_parquet_to_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ROWS)
    config = PrepConfig(text=(TextSource("edu", str(tmp_path / "*.parquet"), "ODC-By"),), out=str(tmp_path / "out"))
    summary = run(config, quiet=True)
    assert summary["rejected"] == {"duplicate_text": 1}
    assert summary["heldout_sentences_removed_from_text"] == 1
    found = {d.id: d for d in ShardSet.open(tmp_path / "out" / "text")}
    assert {name: d.text for name, d in found.items()} == {
        "a": ROWS[0]["text"],
        "c/0": "Before it.",
        "c/1": "After it.",
    }
    assert {(d.source, d.license) for d in found.values()} == {("edu", "ODC-By")}
    assert [d.id for d in ShardSet.open(tmp_path / "out" / "heldout-text")] == ["b"]
    assert verify(tmp_path / "out" / "text") == []


def test_chunks_are_the_text_in_order_and_fit() -> None:
    tokenizer = load_tokenizer("mistral-v1")
    text = "The sun also riseth. And the sun goeth down! " * 30 + "word " * 200 + "x" * 500
    made = list(chunk(text, tokenizer, 50))
    assert all(0 < len(ids) <= 50 for _, ids in made)
    assert "".join("".join(piece.split()) for piece, _ in made) == "".join(text.split())
    assert made[0][0].endswith((".", "!"))
    assert all(tokenizer.encode(piece) == ids.tolist() for piece, ids in made)
    assert len(list(chunk(text, tokenizer, 10**6))) == 1


def test_texts_that_differ_only_in_looks_are_the_same() -> None:
    assert document_hash("In the beginning, was") == document_hash("in THE beginning was\n")
    assert document_hash("in the beginning was") != document_hash("in the beginning is")
    different = ["हाँ की", "हाँ का", "हाँ कि", "má", "ma", "😀😀", "🚢🌊", "…", "!!!", "かき", "がき"]
    assert len({document_hash(text) for text in different}) == len(different)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_held_out_texts_are_found_without_parsing_the_rest(split: str, tmp_path: Path) -> None:
    escaped = r'{"text": "escaped", "\u0073plit": "h\u0065ldout"}' + "\n"
    (tmp_path / "t.jsonl").write_bytes(lines() + b'{"split" no json\n' + escaped.encode())
    (tmp_path / "t.txt").write_text("a text")
    write_parquet(tmp_path / "t.parquet", ROWS)
    write_parquet(tmp_path / "none.parquet", [{"text": "a row"}])
    for path in source_files(TextSource("toy", str(tmp_path))):
        source = TextSource("toy", str(path), split=split)
        expected = [r.text for r in read_records(source, path, lambda *_: None) if r.split == "heldout"]
        assert list(heldout_texts(source, path)) == expected
        assert ("escaped" in expected) == (path.suffix == ".jsonl")
        assert ("a row" in expected, "a text" in expected) == (
            split == "heldout" and path.stem == "none",
            split == "heldout" and path.suffix == ".txt",
        )


def test_records_that_no_shard_can_hold_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        r'{"text": "half an emoji \ud83d"}' + "\n" + "[" * 200_000 + "\n" + r'{"text": "\ud83d\ude00"}' + "\n"
    )
    found, rejected = read(path)
    assert [text for _, text, _ in found] == ["\U0001f600"]
    assert ["half a surrogate pair" in why for why in rejected] == [True, False]


def test_the_first_of_equal_texts_is_kept_over_files(tmp_path: Path) -> None:
    texts = [["one", "two", "Two!", "three"], ["four", "ONE", "five", "five"], ["two", "five", "six", "one"]]
    for number, rows in enumerate(texts):
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    config = PrepConfig(text=(TextSource("toy", str(tmp_path / "*.jsonl")),), out=str(tmp_path / "out"))
    summary = run(config, quiet=True)
    kept = [document.text for document in ShardSet.open(tmp_path / "out" / "text")]
    assert kept == ["one", "two", "three", "four", "five", "six"]
    assert summary["rejected"] == {"duplicate_text": 6}


def test_a_folder_belongs_to_its_text_files(tmp_path: Path) -> None:
    """Items are numbered by file: a file that came meanwhile would shift what the receipts stand for."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.jsonl").write_bytes(lines())
    config = PrepConfig(text=(TextSource("toy", str(tmp_path / "texts")),), out=str(tmp_path / "out"))
    summary = run(config, quiet=True)
    more = tmp_path / "texts" / "a.jsonl"
    more.write_text('{"text": "It came later."}')
    with pytest.raises(UserError, match=f"inputs.{more} was None, is now '26 bytes'"):
        run(config, quiet=True)
    more.unlink()
    assert run(config, quiet=True) == summary
