"""Inputs in an object store: the same bytes come out, faults are retried and named, no address is taken for a path."""

import dataclasses
import json
import sys
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst_prep import pipeline, stores
from lst_prep.chat.config import ChatConfig
from lst_prep.config import PrepConfig, ReadingConfig, TextSource
from lst_prep.importing.config import ImportConfig
from lst_prep.importing.pipeline import run_import
from lst_prep.places import path_of
from lst_prep.reading import CannotRead, Inputs
from lst_prep.text_files import name_of, source_files
from lst_prep.unread import JobFault
from megatron_lst.config.load import build, merge, parse_overrides, read_yaml
from megatron_lst.errors import UserError
from megatron_lst.values import STORES, Place
from tests.support.object_store import BUCKET, ObjectStore, object_store

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "data_prep" / "corpus"
PATIENT = ReadingConfig(attempts=4, pause_seconds=0.3)
ONCE = ReadingConfig(attempts=1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(stores, "BLOCK", 1 << 16)
    with object_store(monkeypatch) as made:
        yield made


def prepared(out: Path, **given: str) -> PrepConfig:
    said = {
        "out": str(out), "units.extractor": "mfcc", "units.codebook_size": "20", "jobs.workers": "1",
        "reading.attempts": "2", "reading.pause_seconds": "0.1", **given,
    }  # fmt: skip
    values = read_yaml(ROOT / "configs" / "prep-demo.yaml")
    return build(PrepConfig, merge(values, parse_overrides([f"{k}={v}" for k, v in said.items()], PrepConfig)))


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()][::100]


TEXTS = "\n".join(json.dumps({"text": f"Chapter {n}. It was the {n}th day of rain."}) for n in range(20)).encode()
PARTLY = "\n".join(json.dumps({"id": f"t{n}", "text": f"Mill {n} went round.", "split": "test"}) for n in range(3))


def on_disk(folder: Path) -> dict[str, str]:
    """Manifest, texts and pronunciations on this machine."""
    manifest = folder / "en.jsonl"
    manifest.write_text("\n".join(json.dumps({**row, "audio": str(CORPUS / row["audio"])}) for row in rows()))
    (folder / "texts" / "more").mkdir(parents=True)
    (folder / "texts" / "a.jsonl").write_bytes(TEXTS)
    (folder / "texts" / "more" / "b.jsonl").write_text(PARTLY)
    return {
        "manifests": f"[{manifest}]",
        "text": f"[{{name: t, path: {folder / 'texts'}}}]",
        "align.pronunciations": f"[{CORPUS / 'pronunciations.txt'}]",
    }


def in_store(store: ObjectStore) -> dict[str, str]:
    """The same in the store; one recording is named whole, the others count from the manifest."""
    lines = [{**row, "audio": f"audio/{Path(row['audio']).name}"} for row in rows()]
    for row, line in zip(rows(), lines, strict=True):
        store.put_file(f"v1/{line['audio']}", CORPUS / row["audio"])
    lines[0]["audio"] = f"s3://{BUCKET}/v1/{lines[0]['audio']}"
    store.put("v1/texts/a.jsonl", TEXTS)
    store.put("v1/texts/more/b.jsonl", PARTLY.encode())
    return {
        "manifests": f"[{store.put('v1/en.jsonl', chr(10).join(map(json.dumps, lines)).encode())}]",
        "text": f"[{{name: t, path: s3://{BUCKET}/v1/texts}}]",
        "align.pronunciations": f"[{store.put_file('v1/words.txt', CORPUS / 'pronunciations.txt')}]",
    }


def results(out: Path) -> dict[str, Any]:
    """Every file of the sets, the codebook and what is held out; the plan's fingerprint, which knows paths, aside."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_file() and not name.startswith(("work", "report", "plan.json", "summary.json", ".lock")):
            found[name] = path.read_bytes()
        if path.name == "manifest.json":
            found[name] = {**json.loads(found[name]), "plan": None}
    return found


@pytest.mark.slow
def test_a_preparation_from_a_store_is_the_local_one_byte_for_byte(tmp_path: Path, store: ObjectStore) -> None:
    pipeline.run(prepared(tmp_path / "local", **on_disk(tmp_path)), quiet=True)
    codebook = store.put_file("models/units.safetensors", tmp_path / "local" / "codebook.safetensors")
    given = in_store(store) | {"units.codebook": codebook, "publish": f"s3://{BUCKET}/sets"}
    pipeline.run(prepared(tmp_path / "remote", **given), quiet=True)
    local, remote = results(tmp_path / "local"), results(tmp_path / "remote")
    assert sorted(local) == sorted(remote)
    assert [name for name in local if local[name] != remote[name]] == []
    assert {"speech/manifest.json", "text/manifest.json", "heldout-text/manifest.json"} <= set(local)
    listed = json.loads((tmp_path / "remote" / "plan.json").read_text())["inputs"]
    assert f"s3://{BUCKET}/v1/texts/more/b.jsonl" in listed
    published = store.keys("sets/")
    assert {f"sets/{name}/manifest.json" for name in ("speech", "text", "heldout-text")} <= set(published)
    assert all(store.get(key) == (tmp_path / "remote" / key[5:]).read_bytes() for key in published)
    before = results(tmp_path / "remote")
    pipeline.run(prepared(tmp_path / "remote", **given), quiet=True)  # and it goes on
    assert results(tmp_path / "remote") == before
    # The control: one byte of one recording is another one.
    key = f"v1/audio/{Path(rows()[1]['audio']).name}"
    store.put_file(key, CORPUS / rows()[2]["audio"])
    with pytest.raises(UserError, match=f"s3://{BUCKET}/sets/.*another set"):  # which is not replaced
        pipeline.run(prepared(tmp_path / "other", **given | {"seed": "1"}), quiet=True)
    other = results(tmp_path / "other")
    assert any(name in remote and other[name] != remote[name] for name in other if "shard." in name)


def test_audio_that_is_missing_is_named_and_the_next_run_does_it(tmp_path: Path, store: ObjectStore) -> None:
    given = in_store(store)
    key = f"v1/audio/{Path(rows()[1]['audio']).name}"
    content = store.get(key)
    store.delete(key)
    with pytest.raises(JobFault, match=f"s3://{BUCKET}/{key}: cannot be read now .No such file"):
        pipeline.run(prepared(tmp_path / "out", **given), quiet=True)
    store.put(key, content)
    pipeline.run(prepared(tmp_path / "out", **given), quiet=True)
    assert (tmp_path / "out" / "speech" / "manifest.json").exists()


@pytest.mark.slow
def test_a_store_that_goes_away_is_waited_for_and_read_on_at_the_same_place(store: ObjectStore) -> None:
    content = np.random.default_rng(0).bytes((1 << 16) + 1000)
    address = store.put("big", content)
    with Inputs(PATIENT).open(address) as file:
        first = file.read(100)
        store.stop()
        threading.Timer(1.0, store.start).start()
        assert first + file.read() == content
    store.stop()
    with pytest.raises(CannotRead, match=rf"{address}: cannot be read now .*NETWORK_CONNECTION"):
        Inputs(ONCE).open(address)
    store.start()


def test_an_object_that_changes_while_it_is_read_is_never_mixed(store: ObjectStore) -> None:
    address = store.put("big", b"a" * 100_000)
    with Inputs(ONCE).open(address) as file:
        assert file.read(10) == b"a" * 10
        store.put("big", b"b" * 100_000)
        with pytest.raises(CannotRead, match="changed while it was read"):
            file.read()
    with Inputs(ONCE).open(address) as file:
        assert file.read() == b"b" * 100_000


def test_refused_and_missing_objects_are_named(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    address = store.put("private", b"x")
    with pytest.raises(CannotRead, match="No such file"):
        Inputs(ONCE).open(f"s3://{BUCKET}/nothing")
    with pytest.raises(CannotRead, match="No such file"):
        Inputs(ONCE).open("s3://no-such-bucket/nothing")
    store.client.put_object(Bucket=BUCKET, Key="public", Body=b"y", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(CannotRead, match=f"{address}: cannot be read now .access denied"):
        Inputs(ONCE).open(address)
    assert Inputs(ONCE).read_bytes(f"s3://{BUCKET}/public") == b"y"  # nobody has to be known for that


def test_folders_and_patterns_name_what_they_name_on_a_disk(tmp_path: Path, store: ObjectStore) -> None:
    names = ["a.txt", "b/c.txt", "b/d.jsonl", "b/e/f.txt", "b/.hidden/g.txt", "b2/h.txt", ".i.txt", "z.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        store.put(f"t/{name}", name.encode())
    inputs = Inputs(ONCE)
    for pattern in ("", "**/*.txt", "b*/*.txt", "b/*", "*.txt", "b", "a.txt", "**/b/*", "[ab].txt", "b/**/f.txt"):
        local = TextSource("s", str(tmp_path / pattern))
        remote = TextSource("s", f"s3://{BUCKET}/t/{pattern}")
        here, there = source_files(local, inputs), source_files(remote, inputs)
        assert [str(p)[len(str(tmp_path)) :] for p in here] == [str(p)[len(f"s3://{BUCKET}/t") :] for p in there]
        assert [name_of(local, p) for p in here] == [name_of(remote, p) for p in there]
        assert [inputs.size(p) for p in there] == [inputs.size(p) for p in here]
    with pytest.raises(UserError, match=f"no .txt, .* file at s3://{BUCKET}/nothing"):
        source_files(TextSource("s", f"s3://{BUCKET}/nothing"), inputs)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "webdataset", "npy"])
def test_an_import_from_a_store_is_the_local_one(tmp_path: Path, store: ObjectStore, kind: str) -> None:
    import io
    import tarfile

    import pyarrow as pa
    from pyarrow import parquet

    rng, folder = np.random.default_rng(1), tmp_path / "in"
    folder.mkdir()
    codes = {f"u{n}": rng.integers(0, 50, 40) for n in range(6)}
    columns = {"id": "id", "tokens": "codes", "text": "text"}
    texts = {name: f"the {name} mill went round and round" for name in codes}
    lines = [{"id": name, "codes": found.tolist(), "text": texts[name]} for name, found in codes.items()]
    if kind == "jsonl":
        for line in lines:  # arrays beside the file that names them
            np.save(folder / f"{line['id']}.npy", codes[line["id"]])
            line["codes"] = f"{line['id']}.npy"
        (folder / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(lines), folder / "x.parquet", row_group_size=2)
    elif kind == "npy":
        columns = {"tokens": "npy", "text": "txt"}
        for name, found in codes.items():
            np.save(folder / f"{name}.npy", found)
            (folder / f"{name}.txt").write_text(texts[name])
    else:
        columns = {"tokens": "npy", "text": "txt"}
        with tarfile.open(folder / "x.tar", "w") as tar:
            for name, found in codes.items():
                content = io.BytesIO()
                np.save(content, found)
                for suffix, data in (("npy", content.getvalue()), ("txt", texts[name].encode())):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for path in folder.iterdir():
        store.put_file(f"in/{path.name}", path)

    def imported(out: str, source: str) -> dict[str, Any]:
        given = {
            "out": str(tmp_path / out), "codec": {"name": "toy", "rate": 25, "codebooks": [50]},
            "sources": [{"name": "s", "format": kind, "path": source, "columns": columns}], "jobs": {"workers": 1},
        }  # fmt: skip
        run_import(build(ImportConfig, given), quiet=True)
        return results(tmp_path / out)

    local = imported("local", str(folder))
    assert imported("remote", f"s3://{BUCKET}/in") == local
    assert local["s/manifest.json"]["documents"] == 6


@pytest.mark.slow
def test_alignments_in_a_store_are_read_and_one_that_is_missing_is_named(tmp_path: Path, store: ObjectStore) -> None:
    row = rows()[0]
    words = [{"word": w, "start": 0.1 + 0.1 * n, "end": 0.2 + 0.1 * n} for n, w in enumerate(row["text"].split())]
    store.put(f"al/{row['id']}.json", json.dumps(words).encode())
    given = in_store(store) | {
        "align.aligner": "import",
        "align.path": f"s3://{BUCKET}/al/{{id}}.json",
        "align.max_words_per_second": "100",
    }
    config = prepared(tmp_path / "out", **given)
    config.text = ()
    summary = pipeline.run(config, quiet=True)
    assert summary["rejected"]["no_alignment"] == len(rows()) - 1
    assert sum(found["documents"] for found in summary["sources"].values()) == 1


def keys(kind: Any, name: str = "") -> Iterator[tuple[str, Place]]:
    """Every key of a configuration that is a path, and its rule."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from ((name, rule) for rule in args[1:] if isinstance(rule, Place))
    elif dataclasses.is_dataclass(kind):
        for key, inner in typing.get_type_hints(kind, include_extras=True).items():
            yield from keys(inner, f"{name}.{key}" if name else key)
    else:
        for inner in args:
            yield from keys(inner, name)


IN_A_STORE = {
    PrepConfig: {
        "publish", "manifests", "text.path", "heldout", "audio.root", "units.codebook", "align.path",
        "align.languages.path", "align.pronunciations",
    },
    ImportConfig: {"publish", "sources.path", "heldout"},
    ChatConfig: {"publish", "sources.path", "heldout", "codebook", "audio.root"},
}  # fmt: skip
ON_DISK = {
    PrepConfig: {"out", "tokenizer", "units.model", "align.model", "align.languages.model"},
    ImportConfig: {"out", "tokenizer"},
    ChatConfig: {"out", "tokenizer", "template", "units_model", "spans"},
}


@pytest.mark.parametrize("config", [PrepConfig, ImportConfig, ChatConfig])
def test_every_key_that_is_a_path_takes_an_address_or_refuses_it_by_name(config: Any) -> None:
    rules = dict(keys(config))
    assert set(rules) == IN_A_STORE[config] | ON_DISK[config]
    for key, rule in rules.items():
        if key in IN_A_STORE[config]:
            assert rule.settle("s3://bucket/a b#c?d") == "s3://bucket/a b#c?d" and rule.stores == STORES
        else:
            with pytest.raises(ValueError, match="not kept in an object store"):
                rule.settle("s3://bucket/key")
        for wrong in ("s3:/bucket/key", "http://host/key", "azure://bucket/key"):
            with pytest.raises(ValueError, match="must be"):
                rule.settle(wrong)
    assert all(rule.settle("a/b") == "a/b" for key, rule in rules.items() if key != "publish")


def test_a_refusal_names_the_key_and_addresses_in_data_are_never_local_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"units\.model: 's3://b/k': must be a path"):
        build(PrepConfig, parse_overrides(["units.model=s3://b/k"], PrepConfig))
    with pytest.raises(UserError, match=r"publish: must be an address in a store, s3://bucket/key"):
        build(PrepConfig, parse_overrides(["publish=here"], PrepConfig))
    for wrong, said in (("s3:/b/k", "two slashes"), ("http://h/k", "no such address"), ("s3://", "no bucket")):
        with pytest.raises(UserError, match=said):
            path_of(wrong)
    with pytest.raises(TypeError):
        Path(path_of("s3://b/k"))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow, which is not installed: pip install 'megatron-lst\[prep\]'"):
        Inputs(ONCE).open("s3://elsewhere/k")
