"""Unit BPE: lossless, shorter, and its shards keep the contract."""

from pathlib import Path

import numpy as np
import pytest

from lst_prep.unit_bpe import UnitBpe, convert_set, train
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError

TOKENIZER = TokenizerInfo("tok", 100, 1, 2, "toy")


@pytest.fixture
def speech(tmp_path: Path) -> ShardSet:
    """Each of 12 words is always the same few units, with some repeated."""
    rng = np.random.default_rng(0)
    lexicon = [rng.integers(1, 20, int(rng.integers(4, 9))) for _ in range(12)]

    def document(i: int) -> Document:
        words = rng.integers(0, 12, 40)
        parts, spans, at = [np.zeros(2, int)], [], 2
        for word in words:
            parts += [lexicon[word], np.zeros(2, int)]
            spans.append((at, at + len(lexicon[word])))
            at += len(lexicon[word]) + 2
        pieces = np.arange(40, dtype=np.int32)
        return Document(
            id=str(i),
            source="toy",
            text="w " * 40,
            speech_ids=np.concatenate(parts).astype(np.int16),
            token_ids=pieces + 3,
            word_frames=np.array(spans, np.int32),
            word_tokens=np.stack([pieces, pieces + 1], 1),
            word_chars=np.stack([2 * pieces, 2 * pieces + 1], 1),
            word_scores=np.zeros(40, np.float32),
        )

    return write_set(
        tmp_path / "speech", map(document, range(30)), "speech", TOKENIZER, Codec("mfcc", (20,), fingerprint="c"), 8192
    )


def test_bpe_is_lossless_and_shorter(speech: ShardSet, tmp_path: Path) -> None:
    model = train(speech, tmp_path / "bpe.model", pieces=60)
    assert model.size == 60
    for document in speech:
        pieces = model.encode(document.speech_ids)
        assert len(pieces) < 0.65 * len(document.speech_ids)
        np.testing.assert_array_equal(model.decode(pieces), document.speech_ids)
    every = np.arange(20, dtype=np.int16)
    np.testing.assert_array_equal(model.decode(model.encode(every)), every)


def test_converted_shards_keep_words_apart(speech: ShardSet, tmp_path: Path) -> None:
    model = train(speech, tmp_path / "bpe.model", pieces=60)
    manifest = convert_set(speech, UnitBpe(tmp_path / "bpe.model"), tmp_path / "speech-bpe", 8192, "zstd:3")
    assert verify(tmp_path / "speech-bpe") == []
    assert manifest["codebook"]["size"] == 60
    assert manifest["codebook"]["fingerprint"] != "c"
    lengths = np.array(manifest["unit_bpe"]["lengths"])
    for before, after in zip(speech, ShardSet.open(tmp_path / "speech-bpe"), strict=True):
        after.check(60, 100)
        np.testing.assert_array_equal(model.decode(after.speech_ids), before.speech_ids)
        assert lengths[after.speech_ids].sum() == len(before.speech_ids)
        begins = [len(model.decode(after.speech_ids[:b])) for b in after.word_frames[:, 0]]
        assert begins == before.word_frames[:, 0].tolist()


def test_impossible_sizes_are_refused(speech: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot hold a codebook of 20"):
        train(speech, tmp_path / "bpe.model", pieces=20)
    with pytest.raises(UserError, match="cannot be fitted"):
        train(speech, tmp_path / "bpe.model", pieces=30000)
    with pytest.raises(UserError, match="cannot be read"):
        UnitBpe(tmp_path / "none.model")
