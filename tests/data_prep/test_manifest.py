"""Lines of a manifest: every key is known, every string can be written, every byte is of the encoding."""

import gzip
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst_prep import join, manifest
from lst_prep.align.spans import AlignedWords
from lst_prep.join import AlignedPiece, documents
from lst_prep.manifest import Entry
from lst_prep.rejection import Rejection
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.errors import UserError

GOOD = {"id": "x", "audio": "a.flac", "text": "word"}


def look(path: Path, content: bytes) -> tuple[list[Entry], list[str]]:
    path.write_bytes(content)
    said: list[str] = []
    return list(manifest.read([path], lambda where, why: said.append(f"{where.rpartition(':')[2]} {why}"))), said


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [
        ("offset", 1.0, "start"),
        ("duration", 2.0, "end"),
        ("audio_filepath", "a.flac", "audio"),
        ("begin", 1.0, "start"),
        ("stop", 2.0, "end"),
        ("Start", 1.0, "start"),
        ("strat", 1.0, "start"),
        ("channels", [0], "channel"),
        ("signal_to_noise", 20.5, "`extra`"),
    ],
)
def test_an_unknown_key_is_refused_with_what_is_known(tmp_path: Path, key: str, value: Any, known: str) -> None:
    entries, said = look(tmp_path / "m.jsonl", json.dumps({**GOOD, key: value}).encode())
    assert entries == []
    assert said[0].startswith(f"1 unknown_key: {key!r}:")
    assert known in said[0]


def test_every_known_key_is_taken(tmp_path: Path) -> None:
    line = {
        **GOOD, "start": 1, "end": 2.5, "speaker": 7, "license": "CC0", "source": "s", "split": "dev", "document": "d",
        "seconds": 1.5, "channel": 1, "extra": {"whatever": [1]},
    }  # fmt: skip
    (entry,), said = look(tmp_path / "m.jsonl", json.dumps(line).encode())
    assert said == []
    assert (entry.speaker, entry.split, entry.channel, entry.start, entry.end) == ("7", "heldout", 1, 1, 2.5)


@pytest.mark.parametrize("name", ["id", "text", "speaker", "license", "source", "document", "audio"])
def test_half_a_surrogate_pair_is_found_wherever_it_is(tmp_path: Path, name: str) -> None:
    entries, said = look(tmp_path / "m.jsonl", json.dumps({**GOOD, name: "a\ud83d"}).encode())
    assert entries == []
    assert f"{name} is not Unicode" in said[0]


def test_bytes_of_another_encoding_are_named_by_line_and_never_replaced(tmp_path: Path) -> None:
    lines = [json.dumps({**GOOD, "id": str(i)}).encode() for i in range(3)]
    latin = json.dumps({**GOOD, "text": "café"}, ensure_ascii=False).encode("latin-1")
    entries, said = look(tmp_path / "m.jsonl", b"\xef\xbb\xbf" + b"\r\n".join([lines[0], latin, b"", *lines[1:]]))
    assert [entry.id for entry in entries] == ["0", "1", "2"]
    assert len(said) == 1
    assert said[0].startswith("2 bad_manifest_line: not utf-8: byte 0xe9 behind ")


def test_a_manifest_may_be_packed_or_utf16_and_half_of_one_is_refused(tmp_path: Path) -> None:
    content = "".join(json.dumps({**GOOD, "id": str(i)}) + "\n" for i in range(3000)).encode()
    assert len(look(tmp_path / "m.jsonl.gz", gzip.compress(content))[0]) == 3000
    assert len(look(tmp_path / "wide.jsonl", content.decode().encode("utf-16"))[0]) == 3000
    with pytest.raises(UserError, match=r"half\.jsonl\.gz: breaks off"):
        look(tmp_path / "half.jsonl.gz", gzip.compress(content)[:-100])


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    entries, said = look(tmp_path / "m.jsonl", b'{"id": "x", "audio": "a.flac", "text": "word", "end": 2, "end": 9}')
    assert entries == []
    assert "twice the key 'end'" in said[0]


def piece(name: str, start: float | None, end: float | None, audio: str = "a.flac") -> AlignedPiece:
    entry = Entry(name, audio, name, start, end, document="d")
    words = AlignedWords(np.array([[0.1, 0.4]]), np.zeros(1, np.float32), np.array([[0, len(name)]], np.int32))
    return AlignedPiece(entry, np.zeros(25, np.int16), words)


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([("one", 0, 1), ("two", 1, 2), ("three", 5, 6)], ["one two three"]),
        ([("one", 0, 1.05), ("two", 1, 2)], ["one two"]),  # rounded times
        ([("two", 1, 2), ("one", 0, 1)], ["two", "one"]),
        ([("one", 0, 1), ("one", 0, 1)], ["one", "one"]),
        ([("one", 0, 3), ("two", 2, 5)], ["one", "two"]),
        ([("one", 0, 1), ("three", 2, 3), ("two", 1, 2), ("four", 3, 4)], ["one three", "two four"]),
        ([("whole", None, None), ("whole", None, None)], ["whole", "whole"]),
        ([("one", None, None, "1.flac"), ("two", None, None, "2.flac")], ["one two"]),
        ([("one", 5, 6, "1.flac"), ("two", 0, 1, "2.flac"), ("three", 4, 5, "1.flac")], ["one two", "three"]),
    ],
)
def test_pieces_that_go_backwards_or_overlap_are_not_joined(pieces: list[Any], texts: list[str]) -> None:
    found = documents([piece(*one) for one in pieces], load_tokenizer("mistral-v1"), 600.0, Fraction(25))
    assert [document.text for document in found] == texts


def test_without_the_check_they_would_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "_follows", lambda *_: True)
    found = documents([piece("two", 1, 2), piece("one", 0, 1)], load_tokenizer("mistral-v1"), 600.0, Fraction(25))
    assert [document.text for document in found] == ["two one"]


def test_an_error_that_nobody_foresaw_costs_its_piece_alone() -> None:
    from lst_prep.loading import one_by_one

    def halve(numbers: list[int]) -> list[float]:
        return [1 / number for number in numbers]

    good, bad, other = one_by_one(halve, [1, 0, 4])
    assert (good, other) == (1, 0.25)
    assert isinstance(bad, Rejection)
    assert str(bad) == "fault: ZeroDivisionError: division by zero"
    with pytest.raises(ZeroDivisionError):  # all of them: it is not the pieces
        one_by_one(halve, [0, 0])

    def away(numbers: list[int]) -> list[float]:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        one_by_one(away, [1, 2])
