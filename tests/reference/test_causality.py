"""SPEC 4 on the oracle: T1, T1b, T2, T3, T5, T6, each with the wrong map or mask that it must catch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_lst.config.schema import ModelConfig
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary
from tests.support.causality import (
    ClosingMap,
    Kind,
    Logits,
    document_violations,
    future_violations,
    literal_blt_map,
    own_unit_map,
    prefix_violations,
    random_chunk,
    token_violations,
)

VOCABULARY = Vocabulary(text_size=24, speech_size=9, multiple=8)
BASE = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.3,
)  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "mean, three queries, linear": {"pooling": "mean", "queries": 3},
    "wide unit window": {"decoder_window_units": 512, "cross_rope": True},
    "two units, double residual": {"decoder_window_units": 2, "double_residual": True, "encoder_layers": 2},
    "own decoder embedding": {"decoder_input": "embedding", "qk_norm": True, "kv_heads": 1},
    "direct text": {"text_path": "direct", "decoder_window_units": 3},
    "direct text, own embedding": {"text_path": "direct", "decoder_input": "embedding"},
}
KINDS: tuple[Kind, ...] = ("static", "aligned", "lagged")
SIZE = 3
property_test = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def oracle(option: str, vocabulary: Vocabulary = VOCABULARY) -> ReferenceModel:
    return ReferenceModel(replace(BASE, **OPTIONS[option]), vocabulary).double()  # type: ignore[arg-type]


def logits_of(model: ReferenceModel) -> Logits:
    def logits(row: Row) -> np.ndarray:
        with torch.no_grad():
            return model(row).numpy()

    return logits


def random_chunks(rng: np.random.Generator, kind: Kind, documents: int = 3) -> list[Chunk]:
    return [random_chunk(rng, VOCABULARY, kind, SIZE, int(rng.integers(1, 16))) for _ in range(documents)]


def row_of(chunks: list[Chunk], padding: int = 2) -> Row:
    row = assemble_row(chunks, sum(len(c.patch_length) for c in chunks) + padding, VOCABULARY)
    row.check(VOCABULARY)
    return row


def truncated_document() -> Chunk:
    """BOS <s> four speech tokens <t> text EOS: with patches of 3 the second patch is cut short."""
    v = VOCABULARY
    tokens = [v.bos, v.speech_marker, 25, 26, 27, 28, v.text_marker, 5, v.eos]
    return Chunk(np.array(tokens, np.int32), np.array([1, 1, 3, 1, 1, 1, 1], np.int32), np.arange(7) == 3, "cut")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@property_test
@given(seed=st.integers(0, 2**31))
def test_t1b_nothing_before_a_rewritten_future_changes(option: str, kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chunks = random_chunks(rng, kind)
    assert future_violations(logits_of(oracle(option)), chunks, kind, SIZE, VOCABULARY, rng, cuts=2) == []


@pytest.mark.parametrize("option", OPTIONS)
def test_t1b_catches_both_wrong_maps(option: str) -> None:
    logits = logits_of(oracle(option))

    def caught(closing: ClosingMap) -> set[int]:
        found: set[int] = set()
        for seed in range(4):
            rng = np.random.default_rng(seed)
            found.update(
                future_violations(logits, [truncated_document()], "static", SIZE, VOCABULARY, rng, closing, cuts=9)
            )
        return found

    # A rewritten future can cut a patch after any of its tokens but the last: there, and only there, the map leaks.
    assert {5} <= caught(literal_blt_map) <= {2, 3, 5}
    assert caught(own_unit_map) >= {2, 3, 5}, "a token inside a patch read the patch's later tokens"


@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS))
def test_t1_a_token_changes_its_own_logits_and_no_earlier_ones(option: str, seed: int, kind: Kind) -> None:
    rng = np.random.default_rng(seed)
    row = row_of(random_chunks(rng, kind))
    assert token_violations(logits_of(oracle(option)), row, VOCABULARY, rng) == ([], [])


@pytest.mark.parametrize("option", OPTIONS)
def test_t5_the_own_unit_map_fails_t1(option: str) -> None:
    row, rng = row_of([truncated_document()]), np.random.default_rng(0)
    leaks, _ = token_violations(logits_of(oracle(option)), row, VOCABULARY, rng, own_unit_map, tries=9)
    assert leaks == [2, 3]


def test_t1_cannot_see_the_leak_of_the_literal_map() -> None:
    row, rng = row_of([truncated_document()]), np.random.default_rng(0)
    assert token_violations(logits_of(oracle("default")), row, VOCABULARY, rng, literal_blt_map, tries=9) == ([], [])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 5), tokens=st.integers(1, 30))
def test_t3_maps_of_every_prefix_are_a_prefix_of_the_maps(seed: int, size: int, tokens: int) -> None:
    chunk = random_chunk(np.random.default_rng(seed), VOCABULARY, "static", size, tokens)
    assert prefix_violations(chunk, size, VOCABULARY) == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 5), tokens=st.integers(3, 30))
def test_t5_the_literal_map_fails_t3_exactly_at_truncated_patches(seed: int, size: int, tokens: int) -> None:
    chunk = random_chunk(np.random.default_rng(seed), VOCABULARY, "static", size, tokens)
    last = np.cumsum(chunk.patch_length) - 1
    truncated = last[chunk.closes_late].tolist()
    failed = prefix_violations(chunk, size, VOCABULARY, literal_blt_map)
    # Where another next token would leave the patch open, the literal map differs: at each patch that could go on.
    assert set(truncated) <= set(failed)
    inside = np.setdiff1d(np.flatnonzero(VOCABULARY.is_speech(chunk.tokens)), last)
    assert set(failed) <= set(truncated) | set(inside.tolist())


@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS))
def test_t6_packed_documents_do_not_see_each_other(option: str, seed: int, kind: Kind) -> None:
    rng = np.random.default_rng(seed)
    row = row_of(random_chunks(rng, kind))
    assert document_violations(logits_of(oracle(option)), row, VOCABULARY, rng) == []


def test_t6_catches_masks_that_ignore_documents() -> None:
    rng = np.random.default_rng(1)
    row = row_of(random_chunks(rng, "static"))
    merged = replace(row, document=row.document * 0, unit_document=row.unit_document * 0)
    logits = logits_of(oracle("default"))
    assert document_violations(lambda r: logits(replace(merged, tokens=r.tokens)), row, VOCABULARY, rng)


def token_gradients(model: ReferenceModel, row: Row, t: int) -> np.ndarray:
    """Norm of d(sum of logits_t) / d(embedding of token s), for every s; both tables of the direct text path."""
    captured: list[torch.Tensor] = []
    tables = [model.embedding] + ([model.text_embedding] if model.config.text_path == "direct" else [])

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        captured.append(output)

    hooks = [table.register_forward_hook(keep) for table in tables]
    # A plain sum has zero gradient through a head whose rows sum to zero; a fixed random mix has not.
    mix = torch.randn(model.vocabulary.padded_size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    (model(row)[t] @ mix).backward()
    for hook in hooks:
        hook.remove()
    total = np.zeros(len(row.tokens))
    for output in captured:
        if output.grad is not None:
            norm = output.grad.norm(dim=-1).numpy()
            total += norm if len(norm) == len(total) else norm[row.unit]
    return total


@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS))
def test_t2_gradients_reach_exactly_the_known_past(option: str, seed: int, kind: Kind) -> None:
    """window=1 ablates both local self-attentions: what is left beyond the token itself came through units."""
    rng = np.random.default_rng(seed)
    row = row_of(random_chunks(rng, kind))
    check_gradients(oracle(option), row, rng)


def check_gradients(model: ReferenceModel, row: Row, rng: np.random.Generator) -> None:
    narrow = ReferenceModel(replace(model.config, window=1), model.vocabulary).double()
    narrow.load_state_dict(model.state_dict())
    for t in rng.permutation(len(row.tokens))[:3].tolist():
        future = np.arange(len(row.tokens)) > t
        assert (token_gradients(model, row, t)[future] == 0).all()
        known = (row.unit <= row.closed[t]) & (row.document == row.document[t])
        gradient = token_gradients(narrow, row, t)
        assert (gradient[known] > 0).all(), "a closed unit gives no signal"
        itself = np.arange(len(row.tokens)) == t
        assert (gradient[~known & ~itself] == 0).all()
