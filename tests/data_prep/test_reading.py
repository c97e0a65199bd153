"""Inputs: what waiting mends is waited for, what it does not is named, and bad names are bad input."""

import errno
import gzip
import io
import os
from pathlib import Path

import pytest

from lst_prep.config import ReadingConfig
from lst_prep.reading import CannotRead, Inputs
from lst_prep.rejection import Rejection
from lst_prep.text_lines import open_text
from tests.support.faulty_store import KINDS, SHORT, FaultyStore

FAST = ReadingConfig(attempts=3, pause_seconds=0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.bin"
    path.write_bytes(os.urandom(1_000_000))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, 2])
def test_an_open_that_fails_for_a_while_is_mended(file: Path, faulty_store: FaultyStore, kind: int, times: int) -> None:
    faulty_store.fails = lambda number, *_: kind if number < times else None
    with faulty_store.working():
        assert Inputs(FAST).read_bytes(file) == file.read_bytes()


@pytest.mark.parametrize("kind", [*KINDS, SHORT])
def test_a_read_that_fails_in_the_middle_goes_on_at_the_same_byte(
    file: Path, faulty_store: FaultyStore, kind: int
) -> None:
    faulty_store.fails = lambda number, what, _: kind if what == "read" and number % 5 == 4 else None
    with faulty_store.working():
        found = Inputs(FAST).read_bytes(file)
    assert found == file.read_bytes()
    assert len([what for what, _ in faulty_store.seen if what == "open"]) > 1  # control: it was opened again


@pytest.mark.parametrize("kind", [*KINDS, SHORT])
@pytest.mark.parametrize("what", ["open", "read"])
def test_what_stays_away_is_named_and_is_no_oserror(
    file: Path, faulty_store: FaultyStore, kind: int, what: str
) -> None:
    if (what, kind) == ("open", SHORT):
        pytest.skip("opening is never short")
    faulty_store.fails = lambda _, event, __: kind if event == what else None
    with faulty_store.working(), pytest.raises(CannotRead, match=r"in\.bin") as raised:
        Inputs(FAST).read_bytes(file)
    assert list(raised.value.files) == [str(file)]
    assert not isinstance(raised.value, OSError | ValueError)
    assert len([event for event, _ in faulty_store.seen if event == what]) == 3


def test_only_the_first_file_is_waited_for(tmp_path: Path, faulty_store: FaultyStore) -> None:
    inputs = Inputs(FAST)
    with faulty_store.working():
        for name in "abc":
            with pytest.raises(CannotRead):
                inputs.open(tmp_path / name)
    assert [Path(path).name for _, path in faulty_store.seen] == ["a", "a", "a", "b", "c"]
    assert inputs.tried == 3


def test_a_file_that_changes_while_it_is_read_is_not_pieced_together(
    file: Path, faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(number: int, what: str, _: str) -> int | None:
        if number == 3:
            file.write_bytes(b"another file")
        return errno.ESTALE if number == 3 else None

    faulty_store.fails = fails
    with faulty_store.working(), pytest.raises(CannotRead, match="changed while it was read"):
        Inputs(FAST).read_bytes(file)


def test_names_that_no_file_can_have_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, wrong in ((".", IsADirectoryError), ("n" * 300, OSError), ("loop", OSError), ("a\0b", ValueError)):
        with pytest.raises(wrong):
            Inputs(FAST).open(tmp_path / name)


def test_what_is_given_up_is_a_rejection_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = Inputs(FAST, ["gone.wav", "an-id"])
    for path in ("gone.wav", tmp_path / "gone.wav", "./x/../gone.wav"):
        with pytest.raises(Rejection, match="given_up"):
            inputs.open(path)
    assert inputs.is_given_up("an-id", "elsewhere.wav")
    assert not inputs.is_given_up("other-id", "elsewhere.wav")
    with pytest.raises(CannotRead):
        inputs.open("other.wav")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, faulty_store: FaultyStore, kind: int
) -> None:
    for name in ("a/1", "b/2", "c/3"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    names = [str(path.relative_to(tmp_path)) for path in Inputs(FAST).walk(tmp_path)]
    assert names == ["a/1", "b/2", "c/3"]
    faulty_store.fails = lambda _, what, path: kind if what == "list" and path.endswith("/b") else None
    for look in (lambda: Inputs(FAST).walk(tmp_path), lambda: Inputs(FAST).expand(f"{tmp_path}/*/*")):
        with faulty_store.working(), pytest.raises(CannotRead, match="/b"):
            list(look())
    given_up = Inputs(FAST, [str(tmp_path / "b")])
    with faulty_store.working():
        assert [path.name for path in given_up.walk(tmp_path)] == ["1", "3"]


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/b/2.txt", "a/b/3.md", "[x]/4.txt", ".hidden/5.txt", "6.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def find(pattern: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in Inputs(FAST).expand(f"{tmp_path}/{pattern}")]

    assert find("**/*.txt") == ["6.txt", "[x]/4.txt", "a/1.txt", "a/b/2.txt"]
    assert find("a/*/[12].txt") == ["a/b/2.txt"]
    assert find("*/?.txt") == ["[x]/4.txt", "a/1.txt"]
    assert find("[[]x]/*") == ["[x]/4.txt"]
    assert find("none/*") == []


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_packed_file_is_read_to_its_end_or_is_an_error(tmp_path: Path, suffix: str) -> None:
    """Two streams end to end; half of one is an error, not a shorter file, as zstandard's own reader has it."""
    import bz2
    import lzma

    import zstandard

    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}[suffix]
    text = "".join(f"line {i} {os.urandom(8).hex()}\n" for i in range(5000))
    path = tmp_path / f"x.txt.{suffix.upper()}"
    path.write_bytes(pack(text.encode()) + pack(b"and more\n"))
    with open_text(path) as lines:
        assert lines.read() == text + "and more\n"
    packed = pack(text.encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(Exception, match="end") as raised, open_text(path) as lines:
        lines.read()
    assert not isinstance(raised.value, CannotRead)
    if suffix == "zst":  # control: what a reader that is not ours makes of it
        reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()))
        assert len(reader.read()) < len(text)
