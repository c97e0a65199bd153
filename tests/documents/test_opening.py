"""Opening shard sets: what is damaged, foreign or away for a while is told in one sentence, or tried again."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_lst.documents import opening
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import LocalFiles, ShardSet
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import DamagedDataError, LstError, UserError
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TOKENIZER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", SPEECH_DOCUMENTS[:8], "speech", TOKENIZER, CODEBOOK)
    return tmp_path / "set"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no kind": (lambda m: m.pop("kind"), "lacks 'kind'"),
    "no documents": (lambda m: m.pop("documents"), "lacks 'documents'"),
    "no tokenizer": (lambda m: m.pop("tokenizer"), "lacks 'tokenizer'"),
    "no files": (lambda m: m.pop("files"), "lacks 'files'"),
    "no index": (lambda m: m["files"].pop("index.json"), "lacks files.'index.json'"),
    "no size": (lambda m: m["tokenizer"].pop("size"), "lacks tokenizer.'size'"),
    "size as text": (lambda m: m["tokenizer"].update(size="32000"), "tokenizer.size is '32000'"),
    "another kind": (lambda m: m.update(kind="music"), "kind is 'music'"),
    "one key more": (lambda m: m["tokenizer"].update(normaliser="nfkc"), "unknown key 'normaliser'"),
    "codebook": (lambda m: m.update(codebook="mfcc"), "codebook is 'mfcc'"),
    "count as text": (lambda m: m.update(documents=None), "documents is None"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_manifest_with_a_missing_or_foreign_key_is_a_sentence(folder: Path, mistake: str) -> None:
    edit, message = MISTAKES[mistake]
    change(folder, edit)
    with pytest.raises(DamagedDataError, match=message) as error:
        ShardSet.open(folder)
    assert str(folder / "manifest.json") in str(error.value)


def test_keys_for_people_are_free(folder: Path) -> None:
    """The control: what is beside the keys that are read disturbs nobody."""
    change(folder, lambda m: m.update(licenses=["CC0"], notes={"by": "us"}))
    assert len(ShardSet.open(folder)) == 8


@pytest.mark.parametrize("content", ["", "<html>please log in", "[]", '{"schema_version": 1', "\x00\xff"])
def test_a_manifest_that_is_none_is_a_sentence(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DamagedDataError, match=r"manifest\.json: not "):
        ShardSet.open(folder)


class Away(LocalFiles):
    """A store whose files fail for some calls, with an error number."""

    def __init__(self, folder: Path, code: int, times: int, first_pause: float = 0.0) -> None:
        super().__init__(folder, first_pause)
        object.__setattr__(self, "left", times)
        object.__setattr__(self, "code", code)

    def fetch(self, name: str) -> Path:
        if self.left > 0:  # type: ignore[attr-defined]
            object.__setattr__(self, "left", self.left - 1)  # type: ignore[attr-defined]
            raise OSError(self.code, os.strerror(self.code), str(self.folder / name))  # type: ignore[attr-defined]
        return super().fetch(name)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_store_that_is_away_for_a_moment_is_waited_for(folder: Path, code: int) -> None:
    for times in range(opening.ATTEMPTS):
        assert len(ShardSet.open(folder, files=Away(folder, code, times))) == 8
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        ShardSet.open(folder, files=Away(folder, code, opening.ATTEMPTS))


def test_what_no_waiting_mends_is_not_waited_for(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        ShardSet.open(folder, files=Away(folder, errno.EACCES, 1, first_pause=1e6))


def test_one_stale_handle_of_a_shard_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet.open(folder, files=LocalFiles(folder, first_pause=0.0))
    real, left = np.fromfile, [errno.ESTALE, errno.EIO]

    def failing(*arguments: Any, **options: Any) -> Any:
        if left:
            raise OSError(left[0], os.strerror(left.pop(0)))
        return real(*arguments, **options)

    monkeypatch.setattr(np, "fromfile", failing)
    assert shards.get(0).id == SPEECH_DOCUMENTS[0].id
    assert left == []


def test_a_damaged_copy_in_the_cache_is_made_again(folder: Path, tmp_path: Path) -> None:
    ShardSet.open(folder, cache=tmp_path / "cache").get(0)
    cached = next((tmp_path / "cache").rglob("*.mds"))
    whole = cached.read_bytes()
    for damage in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], b""):
        cached.write_bytes(damage)
        assert ShardSet.open(folder, cache=tmp_path / "cache").get(0).id == SPEECH_DOCUMENTS[0].id
        assert cached.read_bytes() == whole


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "cache_gigabytes"),
        (errno.EDQUOT, "free some"),
        (errno.EROFS, "can be written"),
        (errno.EACCES, "own"),
    ],
)
def test_a_cache_that_cannot_be_written_is_a_sentence(
    folder: Path, tmp_path: Path, code: int, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def failing(self: Path, data: bytes) -> int:
        if tmp_path / "cache" in self.parents:
            raise OSError(code, os.strerror(code), str(self))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(UserError, match=rf"cache folder {tmp_path / 'cache'} cannot be written.*{cure}"):
        ShardSet.open(folder, cache=tmp_path / "cache").get(0)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_set_made_of_nothing_that_this_program_writes(folder: Path) -> None:
    from megatron_lst.documents.format import file_hash

    (folder / "index.json").write_text('{"shards": [{"samples": 8}]}')
    change(folder, lambda m: m["files"].update({"index.json": file_hash(folder / "index.json")}))
    with pytest.raises(LstError, match=r"index\.json"):
        ShardSet.open(folder)


def test_the_documents_are_what_was_written(folder: Path) -> None:
    assert [document.id for document in ShardSet.open(folder)] == [d.id for d in SPEECH_DOCUMENTS[:8]]
    assert isinstance(ShardSet.open(folder).get(0), Document)


def test_what_is_no_shard_set_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "prepared" / "speech").mkdir(parents=True)
    (tmp_path / "prepared" / "speech" / "manifest.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "part-00000").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, said in {
        "nothing": "there is no such folder",
        "prepared": f"name those that you want: {tmp_path}/prepared/speech",
        "empty": "an empty folder",
        "half": "did not finish",
        "file": "a file; a shard set is a folder",
    }.items():
        with pytest.raises(UserError, match=f"{name}: .*{said}"):
            ShardSet(tmp_path / name)
