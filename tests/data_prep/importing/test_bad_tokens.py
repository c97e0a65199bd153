"""Bad input is refused by file and row before anything is written, or is rejected alone where the rest is good."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst_prep.importing.checks import codes_of
from lst_prep.importing.config import ImportConfig
from lst_prep.importing.pipeline import run_import
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.config.load import build
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import LstError, UserError
from tests.data_prep.importing.tokens import WRITERS, configuration, records, write_jsonl, write_parquet

Mistake = Callable[[dict[str, Any]], None]


def transposed(row: dict[str, Any]) -> None:
    row["codes"] = row["codes"].T


def ragged(row: dict[str, Any]) -> None:
    row["codes"] = row["codes"].tolist()
    row["codes"][4] = row["codes"][4][:2]


def fewer_books(row: dict[str, Any]) -> None:
    row["codes"] = row["codes"][:, :2]


def out_of_range(row: dict[str, Any]) -> None:
    row["codes"][3, 1] = 20


def negative(row: dict[str, Any]) -> None:
    row["codes"][3, 1] = -1


def other_rate(row: dict[str, Any]) -> None:
    row["seconds"] *= 2


def no_tokens(row: dict[str, Any]) -> None:
    row["codes"] = []


def another_codec(row: dict[str, Any]) -> None:
    row["codec"] = "encodec"


MISTAKES: list[tuple[Mistake, str, str]] = [
    (transposed, "bad_shape", r"expected \[T, 3\]; transposed\? then set layout: qt"),
    (ragged, "bad_shape", "frames of different lengths: 2, 3"),
    (fewer_books, "bad_shape", r", 2\], expected \[T, 3\]"),
    (out_of_range, "code_out_of_range", "frame 3: 20 in codebook 1, which has 20"),
    (negative, "code_out_of_range", "frame 3: -1 in codebook 1"),
    (other_rate, "rate_mismatch", "6.25 a second, toy has 12.5"),
    (no_tokens, "bad_tokens", "no tokens"),
    (another_codec, "other_codec", "tokens of encodec, the configuration says toy"),
]
COLUMNS = {"id": "id", "tokens": "codes", "text": "text", "seconds": "seconds", "codec": "codec"}


def run(values: dict[str, Any]) -> dict[str, Any]:
    summary = run_import(build(ImportConfig, values), quiet=True)
    assert summary is not None
    return summary


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{**row, "codec": "toy"} for row in records(count)]


def nothing_written(out: Path) -> bool:
    return not list(out.rglob("*.mds*")) and not list(out.rglob("manifest.json")) and not (out / "train.yaml").exists()


@pytest.mark.parametrize(("spoil", "reason", "detail"), MISTAKES, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_one_mistake_costs_one_record(
    tmp_path: Path, write: Callable[..., dict[str, Any]], spoil: Mistake, reason: str, detail: str
) -> None:
    rows = rows_of(12)
    spoil(rows[7])
    source = {**write(tmp_path / "in", rows), "columns": COLUMNS}
    summary = run(configuration(tmp_path / "out", source))
    assert summary["rejected"] == {reason: 1} and summary["records"] == 12
    (example,) = summary["rejection_examples"][reason]
    assert re.search(detail, example["detail"])
    where = {"write_parquet": "part-0.parquet: row 7", "write_jsonl": "all.jsonl: line 8"}[write.__name__]
    assert example["id"].endswith(where)
    written = {d.id for name in ("talks", "talks-untranscribed") for d in ShardSet.open(tmp_path / "out" / name)}
    assert written == {row["id"] for row in rows} - {rows[7]["id"]}


@pytest.mark.parametrize(("spoil", "reason", "detail"), MISTAKES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_mistake_of_all_records_is_refused_before_anything_is_written(
    tmp_path: Path, spoil: Mistake, reason: str, detail: str
) -> None:
    rows = rows_of(12)
    for row in rows:
        spoil(row)
    source = {**write_jsonl(tmp_path / "in", rows), "columns": COLUMNS}
    with pytest.raises(UserError, match=f"12 of 12 records are wrong.*as {reason}") as caught:
        run(configuration(tmp_path / "out", source))
    assert "all.jsonl: line 1:" in str(caught.value) and re.search(detail, str(caught.value))
    assert nothing_written(tmp_path / "out")


def test_a_share_above_the_limit_is_refused_and_one_below_is_not(tmp_path: Path) -> None:
    rows = rows_of(120)
    for row in rows[:7]:
        out_of_range(row)
    source = {**write_parquet(tmp_path / "in", rows), "columns": COLUMNS}
    with pytest.raises(UserError, match=r"7 of 120 records are wrong .*checks.max_rejected=0.05"):
        run(configuration(tmp_path / "out", source))
    assert nothing_written(tmp_path / "out")
    summary = run(configuration(tmp_path / "other", source, checks={"max_rejected": 0.06}))
    assert summary["rejected"] == {"code_out_of_range": 7}


@pytest.mark.parametrize("kind", [name for name in WRITERS if name not in ("npy", "webdataset_npz")])
def test_a_mapping_that_names_no_column_is_refused(tmp_path: Path, kind: str) -> None:
    source = WRITERS[kind](tmp_path / "in", records(12))
    columns = {**source.get("columns", {"id": "id", "tokens": "codes", "text": "text"}), "seconds": "dauer"}
    with pytest.raises(UserError, match=r"source 'talks': columns.seconds: .* has no 'dauer'; it has .*"):
        run(configuration(tmp_path / "out", {**source, "columns": columns}))
    assert nothing_written(tmp_path / "out")


def test_unknown_columns_and_formats_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in", records(3))
    with pytest.raises(UserError, match="duration.*unknown key"):
        run(configuration(tmp_path / "out", {**source, "columns": {"tokens": "codes", "duration": "x"}}))
    with pytest.raises(UserError, match="did you mean 'parquet'"):
        run(configuration(tmp_path / "out", {**source, "format": "parket"}))


def test_repeated_ids_are_rejected_over_all_files(tmp_path: Path) -> None:
    rows = rows_of(24)
    rows[20]["id"] = rows[3]["id"]
    source = {**write_parquet(tmp_path / "in", rows), "columns": COLUMNS}
    summary = run(configuration(tmp_path / "out", source))
    assert summary["rejected"] == {"duplicate_id": 1}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset", "webdataset_npz", "jsonl_paths", "shar", "lhotse"])
def test_a_file_that_breaks_off_is_named(tmp_path: Path, kind: str) -> None:
    source = WRITERS[kind](tmp_path / "in", records(24))
    suffixes = (".parquet", ".arrow", ".tar", ".tar.gz", ".jsonl.gz")
    name = next(p for p in sorted((tmp_path / "in").rglob("*")) if p.name.endswith(suffixes))
    content = name.read_bytes()
    name.write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(LstError) as caught:
        run(configuration(tmp_path / "out", source))
    assert name.name in str(caught.value), caught.value
    assert nothing_written(tmp_path / "out")


def test_tokens_that_are_away_are_waited_for_or_given_up_by_name(tmp_path: Path) -> None:
    source = WRITERS["jsonl_paths"](tmp_path / "in", records(6))
    lost = tmp_path / "in/codes/r002.npy"
    content = lost.read_bytes()
    lost.unlink()
    values = configuration(tmp_path / "out", source)
    with pytest.raises(LstError, match=r"r002\.npy: cannot be read now"):
        run(values)
    assert nothing_written(tmp_path / "out")
    given_up = run(configuration(tmp_path / "without", source, give_up=[str(lost)]))
    assert given_up["rejected"] == {"given_up": 1}
    lost.write_bytes(content)
    assert run(values)["rejected"] == {}


def test_files_that_came_or_changed_are_not_mixed_in(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in", records(24))
    run(configuration(tmp_path / "out", source))
    write_parquet(tmp_path / "more", records(5, seed=1))
    (tmp_path / "more/part-0.parquet").rename(tmp_path / "in/part-9.parquet")
    with pytest.raises(UserError, match=r"no longer what they were: .*part-9.parquet"):
        run(configuration(tmp_path / "out", source))


def test_another_codec_on_the_same_folder_is_another_plan(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in", records(6))
    values = configuration(tmp_path / "out", source)
    run(values)
    with pytest.raises(UserError, match=r"another plan .*codec.rate"):
        run({**values, "codec": {**values["codec"], "rate": 25}, "checks": {"frames": 1000}})


def test_a_broken_line_costs_itself(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in", records(6))
    path = tmp_path / "in/all.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff\xfe" + lines[1]
    lines[3] = b"[1, 2]\n\n"
    path.write_bytes(b"".join(lines))
    summary = run(configuration(tmp_path / "out", source))
    assert summary["rejected"] == {"unreadable_record": 2}
    assert {e["id"].rpartition(": ")[2] for e in summary["rejection_examples"]["unreadable_record"]} == {
        "line 2",
        "line 4",
    }


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    codec = Codec("toy", (4,))
    with pytest.raises(Rejection, match="unreadable_tokens.*allow_pickle"):
        codes_of("a.npy", "tq", codec, tmp_path / "in", Inputs())
    with pytest.raises(Rejection, match=r"a torch file may hold code"):
        codes_of("a.pt", "tq", codec, tmp_path / "in", Inputs())
    with pytest.raises(Rejection, match="outside_corpus"):
        codes_of("../a.npy", "tq", codec, tmp_path / "in", Inputs())


@pytest.mark.parametrize(
    ("value", "layout", "books", "expected"),
    [
        ([1, 2, 3], "tq", (4,), [[1], [2], [3]]),
        ([[1], [2]], "tq", (4,), [[1], [2]]),
        ([[1, 2]], "qt", (4,), [[1], [2]]),
        ("1 2, 3", "tq", (4,), [[1], [2], [3]]),
        ([1, 5, 2, 6], "flat", (4, 8), [[1, 5], [2, 6]]),
        (np.array([[1, 2], [5, 6]], np.uint16), "qt", (4, 8), [[1, 5], [2, 6]]),
        ([[1, 2]], "tq", (4,), "transposed"),
        ([1, 2, 3], "flat", (4, 8), "whole frames of 2"),
        ([[[1, 2]]], "tq", (4, 8), r"\[1, 1, 2\], expected"),
        ([1.0, 2.0], "tq", (4,), "array of float64"),
        ([True, False], "tq", (4,), "array of bool"),
        (["1", "2"], "tq", (4,), "expected integers"),
        ("<|audio_1|>", "tq", (4,), "expected integers"),
        ([None, 1], "tq", (4,), "expected integers"),
        ({"a": 1}, "tq", (4,), "keys and values"),
    ],
)
def test_axes_and_kinds(value: Any, layout: str, books: tuple[int, ...], expected: Any, tmp_path: Path) -> None:
    codec = Codec("toy", books)
    if isinstance(expected, str):
        with pytest.raises(Rejection, match=expected):
            codes_of(value, layout, codec, tmp_path, Inputs())
    else:
        assert codes_of(value, layout, codec, tmp_path, Inputs()).tolist() == expected


def test_merged_repetitions_are_spread_again(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"u": "3 1 2", "d": [2, 1, 3], "s": 0.24})
        + "\n"
        + json.dumps({"u": "3 1", "d": [2], "s": 0.24})
        + "\n"
    )
    columns = {"tokens": "u", "durations": "d", "seconds": "s"}
    values = configuration(
        tmp_path / "out", {"format": "jsonl", "path": str(tmp_path / "in.jsonl"), "columns": columns}
    )
    summary = run({**values, "codec": {"name": "hubert", "rate": 25, "codebooks": [5]}})
    assert summary["rejected"] == {"bad_tokens": 1}
    assert ShardSet.open(tmp_path / "out/talks-untranscribed").get(0).speech_ids.tolist() == [3, 3, 1, 2, 2, 2]
