"""Shards in an object store and behind HTTP: downloads, the cache and its limit, remotes that fail and come back."""

import dataclasses
import errno
import functools
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.data import open_loader, remote
from megatron_lst.data.remote import CacheFolder, open_set
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.shards import MEMORY_BUDGET
from megatron_lst.errors import DamagedDataError, TrainingFault, UserError
from megatron_lst.patching.row import batch_hash
from tests.data.toy import SPEECH_DOCUMENTS, make_config, on_disk


class Store(ThreadingHTTPServer):
    """A file server that can be told to misbehave."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.requests: list[str] = []
        self.failing = 0
        self.truncating = 0
        self.instead: tuple[str, Callable[[bytes], bytes], int] | None = None
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(SimpleHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.instead and self.server.instead[0] in self.path:
            name, content, times = self.server.instead
            self.server.instead = (name, content, times - 1) if times > 1 else None
            body = content(Path(self.translate_path(self.path)).read_bytes())
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
        elif self.server.failing:
            self.server.failing -= 1
            self.send_error(503)
        elif self.server.truncating and self.path.endswith(".zstd"):
            self.server.truncating -= 1
            body = Path(self.translate_path(self.path)).read_bytes()[:-7]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def store(shard_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.05)
    served = tmp_path / "served"
    for name, path in shard_sets.items():
        shutil.copytree(path, served / name)
    server = Store(served)
    yield server
    server.shutdown()
    server.server_close()


def fingerprint(config: Any, steps: int = 4) -> list[str]:
    with open_loader(config, 0, 1) as loader:
        return [batch_hash([row.hash for row in next(loader).rows]) for _ in range(steps)]


def test_a_remote_gives_the_same_rows_and_is_downloaded_once(
    store: Store, shard_sets: dict[str, Path], tmp_path: Path
) -> None:
    config = on_disk(make_config(), shard_sets, cache=str(tmp_path / "cache"))
    expected = fingerprint(config)
    sources = tuple(dataclasses.replace(s, shards=(f"{store.address}/{s.name}",)) for s in config.data.sources)
    fresh = str(tmp_path / "fresh")
    away = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources, cache=fresh))
    assert fingerprint(away) == expected
    shards = [path for path in store.requests if "shard" in path]
    assert len(shards) == len(set(shards)) > 3
    store.requests.clear()
    assert fingerprint(away) == expected
    # The loader reads ahead, perhaps further than the first did; what is there is not fetched again.
    assert not set(store.requests) & set(shards)
    assert f"/speech/{MANIFEST}" in store.requests


@pytest.mark.multiprocess
def test_s3_through_mosaicml_streaming(
    shard_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{port}"
        for name, value in (
            ("S3_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="corpus")
        for name, root in shard_sets.items():
            for path in root.rglob("*"):
                if path.is_file():
                    client.upload_file(str(path), "corpus", f"v1/{name}/{path.relative_to(root)}")
        config = on_disk(make_config(), shard_sets, cache=str(tmp_path / "cache"))
        expected = fingerprint(config)
        sources = tuple(dataclasses.replace(s, shards=(f"s3://corpus/v1/{s.name}",)) for s in config.data.sources)
        for workers in (0, 1):
            fresh = str(tmp_path / f"fresh{workers}")
            data = dataclasses.replace(config.data, sources=sources, workers=workers, cache=fresh)
            assert fingerprint(dataclasses.replace(config, data=data)) == expected
        with pytest.raises(UserError, match="s3://corpus/v1/nothing"):
            open_set("s3://corpus/v1/nothing", "text", CacheFolder(tmp_path / "other"), 1.0)
    finally:
        server.stop()


def test_a_remote_that_fails_and_comes_back_is_waited_for(store: Store, tmp_path: Path) -> None:
    store.failing = 3
    opened = open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "cache"), 20.0)
    store.failing = 2
    assert opened.get(0).id == SPEECH_DOCUMENTS[0].id


def test_a_remote_that_stays_away_is_a_fault_with_its_address(store: Store, tmp_path: Path) -> None:
    opened = open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "cache"), 0.3)
    store.failing = 10**6
    with pytest.raises(TrainingFault, match=rf"{store.address}/speech/.*0\.3 s"):
        opened.get(0)


def test_a_missing_shard_is_damage_with_its_address(store: Store, tmp_path: Path) -> None:
    opened = open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "cache"), 5.0)
    (tmp_path / "served" / "speech" / opened.shard_name(0)).unlink()
    with pytest.raises(DamagedDataError, match=opened.shard_name(0)):
        opened.get(0)


def test_a_truncated_download_is_fetched_again_and_a_damaged_original_is_reported(store: Store, tmp_path: Path) -> None:
    opened = open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "cache"), 5.0)
    store.truncating = 1
    assert opened.get(0).id == SPEECH_DOCUMENTS[0].id
    assert sum("shard" in path for path in store.requests) == 2
    shard = opened.shard_of(len(opened) - 1)
    original = tmp_path / "served" / "speech" / opened.shard_name(shard)
    content = bytearray(original.read_bytes())
    content[20] ^= 4
    original.write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"{opened.shard_name(shard)}.*altered"):
        opened.get(len(opened) - 1)


def test_a_flipped_byte_in_the_cache_is_mended_by_the_next_run(store: Store, tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    open_set(f"{store.address}/speech", "speech", cache, 5.0).get(0)
    cached = next((tmp_path / "cache").rglob("*.mds"))
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    whole = bytes([*content[: len(content) // 2], content[len(content) // 2] ^ 1, *content[len(content) // 2 + 1 :]])
    assert open_set(f"{store.address}/speech", "speech", cache, 5.0).get(0).id == SPEECH_DOCUMENTS[0].id
    assert cached.read_bytes() == whole


def test_a_set_prepared_anew_never_meets_its_old_files(store: Store, tmp_path: Path, shard_sets: Any) -> None:
    cache = CacheFolder(tmp_path / "cache")
    first = open_set(f"{store.address}/speech", "speech", cache, 5.0).get(0)
    shutil.rmtree(tmp_path / "served" / "speech")
    shutil.copytree(shard_sets["text"], tmp_path / "served" / "speech")
    second = open_set(f"{store.address}/speech", "text", cache, 5.0).get(0)
    assert (first.id, second.id) == ("speech-0", "text-0")


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "shard" in p.name)


def test_the_cache_keeps_to_its_limit_and_everything_can_still_be_read(store: Store, tmp_path: Path) -> None:
    unlimited = open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "all"), 5.0)
    ids = [document.id for document in unlimited]
    limit = size_of(tmp_path / "all") // 3
    cache = CacheFolder(tmp_path / "cache", limit)
    for _ in range(2):
        opened = open_set(f"{store.address}/speech", "speech", cache, 5.0)
        found = []
        for i in range(len(opened)):
            found.append(opened.get(i).id)
            if i % 20 == 0:
                opened.close()
        assert found == ids
        largest = max(p.stat().st_size for p in (tmp_path / "all").rglob("*.mds"))
        assert size_of(tmp_path / "cache") <= limit + largest
    assert (tmp_path / "cache").exists()
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_any_fsspec_address_works(shard_sets: dict[str, Path], tmp_path: Path) -> None:
    opened = open_set(f"file://{shard_sets['speech']}", "speech", CacheFolder(tmp_path / "cache"), 5.0)
    assert opened.get(3).id == "speech-3"
    with pytest.raises(UserError, match=r"nosuch://.*not"):
        open_set("nosuch://x/y", "speech", CacheFolder(tmp_path / "cache"), 0.0)


def test_large_local_sets_are_decompressed_into_the_cache(shard_sets: dict[str, Path], tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    assert open_set(str(shard_sets["speech"]), "speech", cache, 5.0).get(3).id == "speech-3"
    assert not cache.root.exists(), "a small set is kept in memory"
    for always, budget in ((False, 1000), (True, MEMORY_BUDGET)):
        assert open_set(str(shard_sets["speech"]), "speech", cache, 5.0, always, budget).get(3).id == "speech-3"
        assert len(list(cache.root.rglob("*.mds"))) == 1
    assert not list(shard_sets["speech"].rglob("*.mds"))
    with pytest.raises(UserError, match="nowhere"):
        open_set(os.path.join(tmp_path, "nowhere"), "speech", cache, 5.0)


def login_page(content: bytes) -> bytes:
    return b"<html>please log in"


def first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [login_page, first_half])
@pytest.mark.parametrize("name", ["manifest.json", "index.json", "sizes.npz", "shard.00000"])
def test_a_file_that_arrives_as_something_else_is_fetched_again(
    store: Store, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    """Once: nobody notices. Always: a sentence, and the next run is well when the store is; no cache keeps it."""
    store.instead = (name, damage, 1)
    opened = open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "once"), 5.0)
    assert opened.get(0).id == SPEECH_DOCUMENTS[0].id
    assert store.instead is None
    store.instead = (name, damage, 10**6)
    cache = CacheFolder(tmp_path / "always")
    with pytest.raises(DamagedDataError, match=name):
        open_set(f"{store.address}/speech", "speech", cache, 5.0).get(0)
    store.instead = None
    assert open_set(f"{store.address}/speech", "speech", cache, 5.0).get(0).id == SPEECH_DOCUMENTS[0].id


@pytest.mark.parametrize(("code", "cure"), [(errno.ENOSPC, "cache_gigabytes"), (errno.EROFS, "can be written")])
def test_a_download_that_cannot_be_written_here_is_a_sentence(
    store: Store, tmp_path: Path, code: int, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, out: Any, length: int = 0) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(remote.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=rf"cache folder {tmp_path / 'cache'} cannot be written.*{cure}"):
        open_set(f"{store.address}/speech", "speech", CacheFolder(tmp_path / "cache"), 600.0)


def test_a_cache_of_somebody_else_is_read_and_never_needs_a_lock(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be read is used; what would have to be written is a sentence with the cure."""
    cache = CacheFolder(tmp_path / "cache")
    ids = [document.id for document in open_set(f"{store.address}/speech", "speech", cache, 5.0)]
    real = Path.open

    def foreign(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wa+") and tmp_path / "cache" in self.parents and ".tmp" not in self.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", foreign)
    assert [document.id for document in open_set(f"{store.address}/speech", "speech", cache, 5.0)] == ids
    monkeypatch.undo()

    def nothing(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wa+") and tmp_path / "cache" in self.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", nothing)
    with pytest.raises(UserError, match="cannot be written.*folder of your own"):
        open_set(f"{store.address}/speech", "speech", cache, 5.0)
