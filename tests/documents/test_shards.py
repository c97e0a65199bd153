"""Shard sets: what was written comes back, and nothing damaged is served."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo, file_hash
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import LocalFiles, ShardSet, verify
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import DamagedDataError, UserError

TOKENIZER = TokenizerInfo("tok", 100, 1, 2, "toy")
CODEBOOK = Codec("mfcc", (20,), fingerprint="code")


def speech_document(i: int) -> Document:
    rng = np.random.default_rng(i)
    words = int(rng.integers(3, 30))
    frames = np.cumsum(rng.integers(1, 5, 2 * words)).astype(np.int32)
    pieces = np.concatenate([[0], np.cumsum(rng.integers(1, 4, words))]).astype(np.int32)
    return Document(
        id=f"doc-{i}",
        source="toy",
        speaker="s",
        license="none",
        text="w " * words,
        speech_ids=rng.integers(0, 20, int(frames[-1]) + 2).astype(np.int16),
        token_ids=rng.integers(3, 100, int(pieces[-1])).astype(np.int32),
        word_frames=frames.reshape(words, 2),
        word_tokens=np.stack([pieces[:-1], pieces[1:]], 1),
        word_chars=np.stack([np.arange(words) * 2, np.arange(words) * 2 + 1], 1).astype(np.int32),
        word_scores=rng.normal(size=words).astype(np.float32),
    )


def make(path: Path, count: int = 40, compression: str = "zstd:3") -> ShardSet:
    return write_set(
        path,
        (speech_document(i) for i in range(count)),
        "speech",
        TOKENIZER,
        CODEBOOK,
        size_limit=8192,
        compression=compression,
    )


@pytest.mark.parametrize(("compression", "cached"), [("zstd:3", False), ("zstd:3", True), ("", False)])
def test_what_was_written_comes_back(tmp_path: Path, compression: str, cached: bool) -> None:
    make(tmp_path / "set", compression=compression)
    shards = ShardSet.open(
        tmp_path / "set", kind="speech", codebook="code", cache=tmp_path / "cache" if cached else None
    )
    assert len(shards) == 40
    assert shards.shards > 3
    assert shards.shard_first[-1] == 40
    for i in np.random.default_rng(0).permutation(40):
        found, expected = shards.get(int(i)), speech_document(int(i))
        for name, value in expected.to_sample().items():
            np.testing.assert_array_equal(found.to_sample()[name], value, err_msg=name)
        assert found.speech_ids.dtype == np.int16
        assert (shards.frames[i], shards.pieces[i]) == (len(expected.speech_ids), len(expected.token_ids))
        assert shards.raw_tokens[i] == expected.raw_tokens
        first = shards.shard_first[shards.shard_of(int(i))]
        assert first <= i < shards.shard_first[shards.shard_of(int(i)) + 1]
    assert verify(tmp_path / "set") == []


def test_text_documents_have_no_units(tmp_path: Path) -> None:
    document = Document(id="t", source="x", text="a b", token_ids=np.array([4, 5], np.int32))
    shards = write_set(tmp_path / "set", [document], "text", TOKENIZER)
    found = shards.get(0)
    assert not found.has_speech
    assert found.word_frames.shape == (0, 2)
    assert shards.codec is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_named_and_the_others_are_served(tmp_path: Path, damage: str) -> None:
    shards = make(tmp_path / "set")
    name = shards.shard_name(1)
    file = tmp_path / "set" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-5])
    else:
        file.unlink()
    shards = ShardSet.open(tmp_path / "set")
    shards.get(0)
    with pytest.raises(DamagedDataError, match=name):
        shards.get(int(shards.shard_first[1]))
    faults = verify(tmp_path / "set")
    assert len(faults) == 1
    assert name in faults[0]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "set")
    with pytest.raises(UserError, match="tokenizer is tok, expected other"):
        ShardSet.open(tmp_path / "set", tokenizer="other")
    with pytest.raises(UserError, match="codebook"):
        ShardSet.open(tmp_path / "set", codebook="other")
    with pytest.raises(UserError, match="kind"):
        ShardSet.open(tmp_path / "set", kind="text")
    with pytest.raises(UserError, match="a folder of shard sets"):
        ShardSet.open(tmp_path)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    (tmp_path / "set" / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(DamagedDataError, match="99"):
        ShardSet.open(tmp_path / "set")


def test_a_changed_index_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "set")
    index = tmp_path / "set" / "index.json"
    index.write_text(index.read_text().replace('"samples": ', '"samples":  '))
    with pytest.raises(DamagedDataError, match=r"index\.json"):
        ShardSet.open(tmp_path / "set")


@pytest.mark.parametrize("name", ["../../victim", "/etc/victim", "part-00000/../../victim", ""])
def test_a_set_cannot_name_files_outside_it(tmp_path: Path, name: str) -> None:
    """A remote set's files are written where their names say; those come from whoever made the set."""
    make(tmp_path / "set")
    asked: list[str] = []

    class Recording(LocalFiles):
        def fetch(self, name: str) -> Path:
            asked.append(name)
            return super().fetch(name)

    index = tmp_path / "set" / "index.json"
    manifest = tmp_path / "set" / "manifest.json"
    content, about = json.loads(index.read_text()), json.loads(manifest.read_text())
    content["shards"][0]["zip_data"]["basename"] = name
    index.write_text(json.dumps(content))
    about["files"]["index.json"] = file_hash(index)
    manifest.write_text(json.dumps(about))
    with pytest.raises(DamagedDataError, match="outside the set"):
        ShardSet.open(tmp_path / "set", files=Recording(tmp_path / "set"))
    about["files"][name] = "0"
    manifest.write_text(json.dumps(about))
    with pytest.raises(DamagedDataError, match="outside the set"):
        ShardSet.open(tmp_path / "set", files=Recording(tmp_path / "set"))
    assert asked
    assert name not in asked


def test_a_broken_document_is_never_written(tmp_path: Path) -> None:
    good = speech_document(0)
    bad = Document(**{**vars(good), "speech_ids": good.speech_ids + 100})  # type: ignore[arg-type]
    with pytest.raises(DamagedDataError, match="speech_ids must be in"):
        write_set(tmp_path / "set", [bad], "speech", TOKENIZER, CODEBOOK)
    assert not (tmp_path / "set" / "part-00000").exists()


@pytest.mark.parametrize("order", ["before", "after"])
def test_transformers_imports_beside_mds(order: str) -> None:
    """In either order, and without a half-imported package left behind."""
    first = "from transformers import LlamaForCausalLM, HubertModel"
    second = "from megatron_lst.documents.mds import formats; formats().MDSWriter"
    lines = [first, second] if order == "before" else [second, first]
    code = "\n".join(
        ["import sys", *lines, "assert not {'streaming', 'streaming.base', 'torchvision'} & set(sys.modules)"]
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=300)
