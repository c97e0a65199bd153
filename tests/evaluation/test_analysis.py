"""Patch embeddings against the oracle, clustering on vectors of known shape, jitter, and the harness's requests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import ModelConfig, PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.embeddings import WordEmbeddings, clustering, draw, jitter, word_embeddings
from megatron_lst.evaluation.harness import TextScorer, generation_settings
from megatron_lst.inference import GenerationSettings, LatentSpeechTextModel
from megatron_lst.patching.row import assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.reference.model import Maps
from megatron_lst.vocabulary import Vocabulary
from tests.support.causality import random_chunk

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=1, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1, init_std=0.4
)


def models() -> tuple[ReferenceModel, LatentSpeechTextModel]:
    oracle = ReferenceModel(TINY, V, seed=4).double()
    return oracle, LatentSpeechTextModel.from_weights(TINY, V, oracle.state_dict(), 3)


def document(words: int = 24) -> Document:
    """Four words by turns, each with units of its own; a gap after every third."""
    frames: list[int] = []
    spans = []
    for w in range(words):
        begin = len(frames)
        frames += [2 * (w % 4), 2 * (w % 4) + 1, 2 * (w % 4)]
        spans.append([begin, len(frames)])
        frames += [8] * (w % 3 == 0)
    names = ["alpha", "beta", "gamma", "delta"]
    text = " ".join(names[w % 4] for w in range(words))
    chars, at = [], 0
    for w in range(words):
        chars.append([at, at + len(names[w % 4])])
        at += len(names[w % 4]) + 1
    ordinal = np.arange(words, dtype=np.int32)[:, None]
    return Document(
        id="d", source="s", text=text, token_ids=np.full(words, 5, np.int32), speech_ids=np.array(frames, np.int16),
        word_frames=np.array(spans, np.int32), word_tokens=np.hstack([ordinal, ordinal + 1]),
        word_chars=np.array(chars, np.int32), word_scores=np.ones(words, np.float32),
    )  # fmt: skip


def test_patch_embeddings_are_the_oracles() -> None:
    oracle, model = models()
    chunk = random_chunk(np.random.default_rng(0), V, "aligned", 3, 20)
    row = assemble_row([chunk], len(chunk.patch_length), V)
    maps = Maps(row, TINY, V, torch.device("cpu"))
    with torch.no_grad():
        h = oracle.encoder.states(oracle.embedding(maps.tokens), maps.local, maps.position)
        expected = oracle.encoder.patches(h, maps.own_unit)
    np.testing.assert_allclose(model.patch_embeddings(chunk), expected, rtol=1e-5, atol=1e-6)


def test_words_with_units_of_their_own_cluster_and_shuffled_names_do_not(tmp_path: Path) -> None:
    _, model = models()
    found = word_embeddings(model, PatchingConfig(), [document()], least=3, words=4)
    assert sorted(set(found.words)) == ["alpha", "beta", "delta", "gamma"]
    assert found.vectors.shape == (24, 16)
    result = clustering(found)
    assert result.within > result.between + 0.2
    assert result.silhouette > 0.3
    shuffled = clustering(replace(found, words=np.random.default_rng(0).permutation(found.words).tolist()))
    assert abs(shuffled.silhouette) < 0.2
    draw(found, tmp_path / "words.png")
    assert (tmp_path / "words.png").stat().st_size > 5000
    with pytest.raises(UserError, match="fewer than two words"):
        word_embeddings(model, PatchingConfig(), [document(3)], least=3)


def test_clustering_of_orthogonal_words() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    result = clustering(WordEmbeddings(list("aaaabbbbcccc"), vectors))
    assert (result.within, result.between, result.silhouette) == pytest.approx((1.0, 0.0, 1.0))


def test_silhouette_is_sklearns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30, 5)).astype(np.float32)
    names = [str(i % 3) for i in range(30)]
    expected = metrics.silhouette_score(vectors, names, metric="cosine")
    assert clustering(WordEmbeddings(names, vectors)).silhouette == pytest.approx(expected, abs=1e-5)


def test_jittered_documents_stay_documents() -> None:
    original = document()
    for seed in range(30):
        moved = jitter(original, 2, np.random.default_rng(seed))
        moved.check(V.speech_size, V.text_size)
        assert np.abs(moved.word_frames - original.word_frames).mean() < 4
    assert not np.array_equal(moved.word_frames, original.word_frames)
    np.testing.assert_array_equal(jitter(original, 0, np.random.default_rng(0)).word_frames, original.word_frames)


def test_harness_requests_are_scored_as_text() -> None:
    oracle, model = models()
    names = "abcdefghijklmnopqrstu"

    def encode(text: str, continuing: bool) -> list[int]:
        return [3 + names.index(c) for c in text.replace(" ", "")]

    def answer(most: int) -> GenerationSettings:
        return generation_settings({"max_gen_toks": most, "until": ["."]}, 16)

    scorer = TextScorer(model, encode, lambda ids: "".join(names[i - 3] for i in ids), units=16)
    ((total, greedy), (best, is_best)) = scorer.loglikelihood(
        [("a b", " c"), ("a b", scorer.generate_until(["a b"], [[]], answer(1))[0])]
    )
    tokens = np.array([V.bos, 3, 4, 5], np.int32)
    from megatron_lst.patching.row import Chunk

    row = assemble_row([Chunk(tokens, np.ones(4, np.int32), np.zeros(4, bool))], 4, V)
    with torch.no_grad():
        log_p = oracle(row).log_softmax(-1)
    assert total == pytest.approx(float(log_p[2, 5]), rel=1e-5)
    assert best >= total
    assert is_best == (int(log_p[2].argmax()) == int(log_p[2, 3:24].argmax()) + 3)
    assert greedy == (int(log_p[2].argmax()) == 5)
    assert scorer.loglikelihood_rolling(["abc"])[0] < 0
    assert scorer.generate_until(["ab"], [["zz", ""]], answer(4))[0] != ""
    with pytest.raises(UserError, match="request 0"):
        scorer.loglikelihood([("a", " ")])
    with pytest.raises(UserError, match="num_beams"):
        generation_settings({"num_beams": 4}, 16)
