"""One builder of chunks: training, evaluation, prompts and decoding agree on tokens, units and c(t)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lst.config.schema import ModelConfig, PatchingConfig
from megatron_lst.data.interleaving import SPEECH, TEXT, Example
from megatron_lst.data.packing import Capacity, first_position, pack_example
from megatron_lst.errors import UserError
from megatron_lst.inference.inputs import PatchCounter
from megatron_lst.patching.chunks import chunk_of_spans, chunk_of_tokens, document_span, prompt_tokens, speech_span
from megatron_lst.patching.closing import closed_units
from megatron_lst.patching.row import Chunk
from megatron_lst.patching.strategies import (
    ALIGNED,
    SINGLE,
    STATIC,
    Patcher,
    evaluation_patcher,
    static_patcher,
    static_patches,
)
from megatron_lst.vocabulary import Vocabulary
from tests.data.toy import SPEECH as CODES
from tests.data.toy import TEXT as PIECES
from tests.data.toy import speech_document

V = Vocabulary(PIECES, CODES)
VARIANTS = [
    (SINGLE, PatchingConfig()),
    (STATIC, PatchingConfig(size=3)),
    (ALIGNED, PatchingConfig()),
    (ALIGNED, PatchingConfig(silence="merged")),
    (ALIGNED, PatchingConfig(granularity="bpe")),
    (ALIGNED, PatchingConfig(max_length=4)),
    (ALIGNED, PatchingConfig(max_length=4, aligned_lag=1)),
    (ALIGNED, PatchingConfig(silence="merged", max_length=5, aligned_lag=1)),
]


def trained(key: int, patcher: Patcher, cut: tuple[int, int]) -> Chunk:
    """A document as a training row holds it: text up to a word, speech to the next cut, text to the end."""
    document = speech_document(key, words=12)
    frames, pieces = document.word_frames[:, 0], document.word_tokens[:, 0]
    (a, b), last = cut, len(document.token_ids)
    spans = [[TEXT, 0, pieces[a]], [SPEECH, frames[a], frames[b]], [TEXT, pieces[b], last]]
    example = Example(document, np.array(spans, np.int64))
    packed = pack_example(example, first_position(example), patcher, Capacity(10_000, 10_000), V, True)
    assert packed is not None
    return packed.chunk


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.sampled_from(VARIANTS), st.integers(1, 5), st.integers(6, 11))
def test_training_and_evaluation_build_the_same_chunk(key: int, variant: Any, first: int, last: int) -> None:
    """Units and closing of every method, the lag and max_length included, are those of training."""
    patcher = Patcher(*variant)
    one = trained(key, patcher, (first, last))
    spans = spans_of(key, patcher, first, last)
    two, _ = chunk_of_spans(spans, V, patcher, leading_marker=True)
    assert one.tokens.tolist() == [*two.tokens.tolist(), V.eos]
    assert one.patch_length.tolist() == [*two.patch_length.tolist(), 1]
    assert one.closes_late.tolist() == [*two.closes_late.tolist(), False]
    assert two.tokens.tolist() == prompt_tokens(spans, V, leading_marker=True)


def spans_of(key: int, patcher: Patcher, a: int, b: int) -> list[Any]:
    document = speech_document(key, words=12)
    frames, pieces = document.word_frames[:, 0], document.word_tokens[:, 0]
    return [
        document_span(document, "text", 0, int(pieces[a]), patcher),
        document_span(document, "speech", int(frames[a]), int(frames[b]), patcher),
        document_span(document, "text", int(pieces[b]), len(document.token_ids), patcher),
    ]


def test_a_lagged_patch_of_max_length_closes_at_its_last_token() -> None:
    """SPEC 4: whoever reads the prefix can count to max_length. Evaluation closed it one token later than training."""
    patcher = Patcher(ALIGNED, PatchingConfig(max_length=4, aligned_lag=1))
    chunk, _ = chunk_of_spans([speech_span(range(7), [[0, 7]])], V, patcher)
    assert chunk.patch_length.tolist() == [1, 1, 4, 3]
    assert chunk.closes_late.tolist() == [False, False, False, True]
    assert closed_units(chunk.patch_length, chunk.closes_late).tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    every_patch_late = closed_units(chunk.patch_length, np.array([False, False, True, True]))
    assert every_patch_late[5] == 1, "the control: the rule that evaluation had closes it one token later"
    with_knowledge = Patcher(ALIGNED, PatchingConfig(max_length=4))
    assert not chunk_of_spans([speech_span(range(7), [[0, 7]])], V, with_knowledge)[0].closes_late.any()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [2, 3, 4, 6]),
        ({"silence": "merged"}, [9, 6]),
        ({"max_length": 4}, [2, 3, 4, 4, 2]),
        ({"silence": "merged", "max_length": 4}, [4, 4, 1, 4, 2]),
    ],
)
def test_aligned_spans_follow_the_configuration(changed: dict[str, Any], expected: list[int]) -> None:
    patcher = Patcher(ALIGNED, PatchingConfig(**changed))
    chunk, begins = chunk_of_spans([speech_span([0] * 15, [[2, 5], [9, 15]])], V, patcher)
    assert chunk.patch_length.tolist() == [1, 1, *expected]
    assert begins.tolist() == [2]


def test_static_patches_go_on_over_a_join_and_aligned_ones_end_there() -> None:
    prompt, candidate = speech_span([0] * 5, [[0, 5]]), speech_span([1] * 5, [[0, 5]])
    static, begins = chunk_of_spans([prompt, candidate], V, static_patcher(4))
    assert static.patch_length.tolist() == [1, 1, 4, 4, 2]
    assert begins.tolist() == [2, 7]
    aligned, _ = chunk_of_spans([prompt, candidate], V, Patcher(ALIGNED, PatchingConfig()))
    assert aligned.patch_length.tolist() == [1, 1, 5, 5]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 60))
def test_decoding_counts_the_patches_that_a_chunk_has(key: int, size: int, count: int) -> None:
    """Token by token or in any pieces, `PatchCounter` gives the units and c(t) of the chunk of the whole sequence."""
    rng = np.random.default_rng(key)
    speaks = np.repeat(rng.random(count) < 0.6, rng.integers(1, 9, count))[:count]
    tokens = np.where(speaks, PIECES + rng.integers(0, CODES, count), rng.integers(3, PIECES, count))
    tokens[0] = V.bos
    chunk = chunk_of_tokens(tokens, V, lambda a, b: static_patches(b - a, size))
    unit = np.repeat(np.arange(len(chunk.patch_length)), chunk.patch_length)
    closed = closed_units(chunk.patch_length, chunk.closes_late)
    counter, at = PatchCounter(V, size), 0
    while at < count:
        step = int(rng.integers(1, 5))
        part = counter.add(tokens[at : at + step])
        assert part.unit.tolist() == unit[at : at + step].tolist()
        assert part.closed.tolist() == closed[at : at + step].tolist()
        at += step


def test_evaluation_follows_the_strategy_of_the_run() -> None:
    """SPEC 9: static for static, mixed and curriculum; aligned boundaries for aligned; single tokens for baselines."""
    lst, baseline = ModelConfig(), ModelConfig(kind="baseline")

    def method(strategy: str, model: ModelConfig = lst, aligned: bool | None = None) -> str:
        return evaluation_patcher(model, PatchingConfig(strategy=strategy), aligned).method  # type: ignore[arg-type]

    assert [method(s) for s in ("static", "mixed", "curriculum")] == [STATIC] * 3
    assert [method(s) for s in ("none", "bpe")] == [SINGLE] * 2
    assert method("aligned") == ALIGNED
    assert method("aligned", aligned=False) == STATIC
    assert method("curriculum", aligned=True) == ALIGNED
    assert method("static", baseline) == SINGLE
    with pytest.raises(UserError, match="unpatched baseline"):
        method("none", baseline, True)


def test_prompts_of_the_tasks() -> None:
    b, t, s = V.bos, V.text_marker, V.speech_marker
    spoken = speech_span([3, 4])
    written = document_span(speech_document(0), "text", 0, 2, static_patcher(4))
    ids = written.ids.tolist()
    assert prompt_tokens([spoken], V) == [b, s, PIECES + 3, PIECES + 4]
    assert prompt_tokens([spoken], V, "speech") == [b, s, PIECES + 3, PIECES + 4]
    assert prompt_tokens([spoken], V, "text") == [b, s, PIECES + 3, PIECES + 4, t]
    assert prompt_tokens([written], V) == [b, *ids]
    assert prompt_tokens([written], V, "speech") == [b, *ids, s]
    assert prompt_tokens([written], V, "speech", leading_marker=True) == [b, t, *ids, s]
    assert prompt_tokens([spoken, written, spoken], V) == [
        b,
        s,
        PIECES + 3,
        PIECES + 4,
        t,
        *ids,
        s,
        PIECES + 3,
        PIECES + 4,
    ]
