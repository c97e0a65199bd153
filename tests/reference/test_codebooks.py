"""SPEC 4 with frames of 1, 4 and 8 codes: a frame is a patch, or part of one, and nothing else changes.

T4 (cached decoding) with several codebooks is in tests/inference, T7 (layouts) in tests/parallel.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_lst.errors import DamagedDataError
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.vocabulary import Vocabulary
from tests.reference.test_causality import check_gradients, logits_of, oracle
from tests.support.causality import (
    Kind,
    document_violations,
    future_violations,
    literal_blt_map,
    own_unit_map,
    prefix_violations,
    random_chunk,
    token_violations,
)

BOOKS = {1: (9,), 4: (5, 3, 4, 6), 8: (3, 4, 2, 5, 3, 4, 2, 3)}
KINDS: tuple[Kind, ...] = ("static", "aligned", "lagged")
OPTIONS = ("default", "wide unit window", "direct text")
property_test = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
depths = pytest.mark.parametrize("depth", BOOKS)
seeds = st.integers(0, 2**31)


def vocabulary_of(depth: int) -> Vocabulary:
    return Vocabulary(text_size=24, speech_size=sum(BOOKS[depth]), codebooks=BOOKS[depth], multiple=8)


def size_of(depth: int) -> int:
    """Two frames a patch, so that some are cut short at a frame."""
    return 2 * depth if depth > 1 else 3


def chunks_of(rng: np.random.Generator, depth: int, kind: Kind) -> list[Chunk]:
    v = vocabulary_of(depth)
    return [random_chunk(rng, v, kind, size_of(depth), int(rng.integers(1, 12 + 3 * depth))) for _ in range(2)]


def row_of(chunks: list[Chunk], v: Vocabulary) -> Row:
    row = assemble_row(chunks, sum(len(c.patch_length) for c in chunks) + 2, v)
    row.check(v)
    return row


def truncated(depth: int) -> Chunk:
    """BOS <s> three frames <t> text EOS, in patches of two frames: the second patch is cut short after a frame."""
    v = vocabulary_of(depth)
    speech = (np.zeros((3, depth), np.int64) + v.offsets + v.text_size).ravel().tolist()
    tokens = np.array([v.bos, v.speech_marker, *speech, v.text_marker, 5, v.eos], np.int32)
    return Chunk(tokens, np.array([1, 1, 2 * depth, depth, 1, 1, 1], np.int32), np.arange(7) == 3, "cut")


@depths
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@property_test
@given(seed=seeds)
def test_t1b_nothing_before_a_rewritten_future_changes(depth: int, option: str, kind: Kind, seed: int) -> None:
    """The future is rewritten inside frames as well as between them."""
    rng, v = np.random.default_rng(seed), vocabulary_of(depth)
    logits = logits_of(oracle(option, v))
    assert future_violations(logits, chunks_of(rng, depth, kind), kind, size_of(depth), v, rng, cuts=2) == []


@depths
@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=seeds, kind=st.sampled_from(KINDS))
def test_t1_t2_t6(depth: int, option: str, seed: int, kind: Kind) -> None:
    rng, v = np.random.default_rng(seed), vocabulary_of(depth)
    row, model = row_of(chunks_of(rng, depth, kind), v), oracle(option, v)
    assert token_violations(logits_of(model), row, v, rng) == ([], [])
    assert document_violations(logits_of(model), row, v, rng) == []
    check_gradients(model, row, rng)


@depths
@settings(max_examples=20, deadline=None)
@given(seed=seeds, frames=st.integers(1, 3))
def test_t3_maps_of_every_prefix_are_a_prefix_of_the_maps(depth: int, seed: int, frames: int) -> None:
    v, size = vocabulary_of(depth), frames * depth
    chunk = random_chunk(np.random.default_rng(seed), v, "static", size, 4 * depth + 8)
    assert v.frame_fault(chunk.tokens) is None
    assert prefix_violations(chunk, size, v) == []


@depths
def test_t5_wrong_maps_are_caught(depth: int) -> None:
    v, size = vocabulary_of(depth), 2 * depth
    chunk, logits = truncated(depth), logits_of(oracle("default", v))
    end = 2 + 3 * depth - 1  # the last token of the patch that is cut short
    assert end in prefix_violations(chunk, size, v, literal_blt_map)
    leaks, _ = token_violations(logits, row_of([chunk], v), v, np.random.default_rng(0), own_unit_map, tries=40)
    assert set(range(2, 2 + 2 * depth - 1)) <= set(leaks), "a token inside a patch read the patch's later tokens"
    caught: set[int] = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        caught |= set(future_violations(logits, [chunk], "static", size, v, rng, literal_blt_map, cuts=99))
    assert end in caught


@pytest.mark.parametrize("depth", [4, 8])
def test_a_frame_as_a_patch_has_no_patch_that_is_cut_short(depth: int) -> None:
    """With a frame a patch every patch closes on its last token, and BLT's map is right."""
    v = vocabulary_of(depth)
    for seed in range(20):
        chunk = random_chunk(np.random.default_rng(seed), v, "static", depth, 6 * depth)
        assert not chunk.closes_late.any()
        assert set(chunk.patch_length.tolist()) <= {1, depth}


@pytest.mark.parametrize("depth", [4, 8])
def test_broken_frames_are_refused(depth: int) -> None:
    v, chunk = vocabulary_of(depth), truncated(depth)
    row = row_of([chunk], v)
    swapped = row.tokens.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    with pytest.raises(DamagedDataError, match="token 2: of codebook 1, not of codebook 0, whose turn it is"):
        replace(row, tokens=swapped).check(v)
    short = Chunk(np.delete(chunk.tokens, 1 + 3 * depth), chunk.patch_length - (np.arange(7) == 3), chunk.closes_late)
    with pytest.raises(DamagedDataError, match=f"ends inside a frame, after {depth - 1} of its {depth} codes"):
        row_of([short], v)
