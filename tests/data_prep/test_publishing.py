"""Sets sent to an object store: whole or not visible, verified, taken up again, and read by training."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lst_prep import publishing, stores
from lst_prep.config import ReadingConfig
from lst_prep.jobs import Jobs
from lst_prep.reading import CannotRead, Inputs
from lst_prep.unread import JobFault
from lst_prep.verify import verify_sets
from megatron_lst.cli.prep import prep_app
from megatron_lst.data import open_loader
from megatron_lst.data.remote import CacheFolder, open_set
from megatron_lst.documents.format import MANIFEST
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.patching.row import batch_hash
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TEXT_DOCUMENTS, TOKENIZER, make_config, on_disk
from tests.support.object_store import BUCKET, ObjectStore, object_store

TARGET = f"s3://{BUCKET}/v1"
ALONE = Jobs(workers=1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as made:
        yield made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with two sets of the toy documents."""
    root = tmp_path / "out"
    write_set(root / "speech", SPEECH_DOCUMENTS, "speech", TOKENIZER, CODEBOOK, size_limit=1 << 17)
    write_set(root / "text", TEXT_DOCUMENTS, "text", TOKENIZER, size_limit=1 << 17)
    (root / "tokenizer.json").write_text("{}")
    return root


def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses of what is sent from now on, in order."""
    sent: list[str] = []
    real = stores.send

    def counted(file: Path, path: stores.StorePath) -> None:
        sent.append(str(path))
        real(file, path)

    monkeypatch.setattr(stores, "send", counted)
    return sent


def test_a_set_is_sent_whole_its_manifest_last_and_training_reads_it(
    store: ObjectStore, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = writes(monkeypatch)
    assert publishing.publish(out, TARGET, ALONE, quiet=True) == [f"{TARGET}/speech", f"{TARGET}/text"]
    assert [address.rpartition("/")[2] for address in sent][-2:] == [MANIFEST, MANIFEST]
    assert sum(address.endswith(MANIFEST) for address in sent) == 2
    for key in store.keys("v1/"):
        assert store.get(key) == (out / key.removeprefix("v1/")).read_bytes()
    assert "v1/tokenizer.json" in store.keys("v1/")

    config = on_disk(make_config(), {name: out / name for name in ("speech", "text")}, cache=str(tmp_path / "cache"))
    sources = tuple(dataclasses.replace(s, shards=(f"{TARGET}/{s.name}",)) for s in config.data.sources)
    away = dataclasses.replace(config.data, sources=sources, cache=str(tmp_path / "fresh"))
    found = []
    for data in (config.data, away):
        with open_loader(dataclasses.replace(config, data=data), 0, 1) as loader:
            found.append([batch_hash([row.hash for row in next(loader).rows]) for _ in range(2)])
    assert found[0] == found[1]


def test_a_rerun_sends_what_is_missing_or_another_and_nothing_else(
    store: ObjectStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing.publish(out, TARGET, ALONE, quiet=True)
    shards = [key for key in store.keys("v1/speech/") if "shard." in key]
    sent = writes(monkeypatch)
    publishing.publish(out, TARGET, ALONE, quiet=True)
    assert sent == []
    store.delete(shards[0])
    content = bytearray(store.get(shards[1]))
    content[-1] ^= 1
    time.sleep(1.0)  # a store's clock has seconds
    store.put(shards[1], bytes(content))  # the same size
    publishing.publish(out, TARGET, ALONE, quiet=True)
    assert sent == [f"s3://{BUCKET}/{key}" for key in shards[:2]]
    shutil.rmtree(out / "work")  # without receipts all is read back, and nothing sent
    sent.clear()
    publishing.publish(out, TARGET, ALONE, quiet=True)
    assert sent == []


def test_a_killed_upload_leaves_no_set_that_a_reader_takes_for_whole(
    store: ObjectStore, out: Path, tmp_path: Path
) -> None:
    """A process of its own is killed when its third object is there; each set opens whole, or not at all."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from lst_prep import publishing, stores\n"
        "from lst_prep.jobs import Jobs\n"
        "real, count = stores.send, [0]\n"
        "def send(file, path):\n"
        "    count[0] += 1\n"
        "    if count[0] > 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(file, path)\n"
        "stores.send = send\n"
        f"publishing.publish(Path({str(out)!r}), {TARGET!r}, Jobs(workers=1), quiet=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert 0 < len(store.keys("v1/")) <= 3
    for name in ("speech", "text"):
        with pytest.raises(UserError, match=f"no {MANIFEST}"):
            open_set(f"{TARGET}/{name}", name, CacheFolder(tmp_path / "c"), 1.0)
    publishing.publish(out, TARGET, ALONE, quiet=True)
    assert len(open_set(f"{TARGET}/speech", "speech", CacheFolder(tmp_path / "c"), 1.0)) > 0


def test_another_set_is_not_replaced_and_an_older_one_is_hidden_first(
    store: ObjectStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing.publish(out, TARGET, ALONE, quiet=True)
    store.put(f"v1/text/{MANIFEST}", store.get(f"v1/text/{MANIFEST}").replace(b'"kind"', b'"plan": "x", "kind"'))
    with pytest.raises(UserError, match=f"{TARGET}/text: there is another set, of plan x"):
        publishing.publish(out, TARGET, ALONE, quiet=True)
    store.put(f"v1/text/{MANIFEST}", b"{")  # half of one, of whatever plan

    def hidden(file: Path, path: stores.StorePath) -> None:
        assert f"v1/text/{MANIFEST}" not in store.keys("v1/")
        raise OSError(28, "no room")

    monkeypatch.setattr(stores, "send", hidden)
    monkeypatch.setattr(publishing, "Inputs", lambda: Inputs(ReadingConfig(attempts=1)))
    with pytest.raises((JobFault, CannotRead), match="no room"):
        publishing.publish(out, TARGET, ALONE, quiet=True)
    assert f"v1/text/{MANIFEST}" not in store.keys("v1/")


def test_what_is_damaged_here_or_comes_back_as_something_else_is_no_success(
    store: ObjectStore, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no bucket 'nowhere'"):
        publishing.publish(out, "s3://nowhere/x", ALONE, quiet=True)
    real = stores.send

    def wrong(file: Path, path: stores.StorePath) -> None:
        real(file, path)
        if "shard." in path.name:
            store.put(str(path).partition(f"{BUCKET}/")[2], b"an empty page")

    with monkeypatch.context() as patched:
        patched.setattr(stores, "send", wrong)
        with pytest.raises(JobFault, match="what is read back is not what was sent"):
            publishing.publish(out, TARGET, ALONE, quiet=True)
    assert not any(key.endswith(MANIFEST) for key in store.keys("v1/"))
    shard = next(path for path in sorted((out / "speech").rglob("shard.*")))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert verify_sets([out], lambda _: None, Jobs(workers=1))
    with pytest.raises(DamagedDataError, match=f"{shard}: altered"):
        publishing.publish(out, TARGET, ALONE, quiet=True)


def test_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    given = ["publish", str(tmp_path / "mistyped"), f"s3://{BUCKET}/sets"]
    with pytest.raises(UserError, match="mistyped: neither a shard set nor the output folder"):
        CliRunner().invoke(prep_app, given, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
