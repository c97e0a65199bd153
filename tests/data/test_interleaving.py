"""Spans of an example (SPEC 7) and where examples are cut (SPEC 6.4)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lst.config.schema import PatchingConfig, SpanConfig
from megatron_lst.data.interleaving import (
    SPEECH,
    Example,
    draws_needed,
    interleaved_example,
    task_example,
    text_example,
    word_spans,
)
from megatron_lst.data.packing import Capacity, first_position, pack_example
from megatron_lst.draws import permutation, uniforms
from megatron_lst.errors import UserError
from megatron_lst.patching.strategies import PatchingSchedule, static_patcher
from megatron_lst.vocabulary import Vocabulary
from tests.data.toy import SPEECH as CODES
from tests.data.toy import TEXT, speech_document, text_document

VOCABULARY = Vocabulary(TEXT, CODES)


def draw(words: int, config: SpanConfig, key: int) -> tuple[np.ndarray, np.ndarray]:
    return word_spans(words, config, uniforms(draws_needed(words, config), 0, "test", key))


@pytest.mark.parametrize("config", [SpanConfig(), SpanConfig(kind="uniform"), SpanConfig(text_ratio=0.5)])
def test_spans_alternate_and_keep_the_word_ratio(config: SpanConfig) -> None:
    heard = read = first = 0
    lengths: list[int] = []
    for key in range(400):
        bounds, speech = draw(2000, config, key)
        assert (bounds[0], bounds[-1]) == (0, 2000)
        assert (np.diff(bounds) > 0).all()
        assert (speech[1:] != speech[:-1]).all()
        words = np.diff(bounds)
        heard, read = heard + words[speech].sum(), read + words[~speech].sum()
        first += bool(speech[0])
        lengths += words[1:-1][speech[1:-1]].tolist()
    assert read / heard == pytest.approx(config.text_ratio, rel=0.06)
    assert first / 400 == pytest.approx(1 / 3, abs=0.08)
    if config.kind == "log_uniform":
        assert (min(lengths), max(lengths)) == (5, 120)
        assert np.mean(np.log(lengths) < np.log(24.6)) == pytest.approx(0.5, abs=0.04)
    else:
        assert (min(lengths), max(lengths)) == (5, 15)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(0, 10**6), st.sampled_from(["log_uniform", "uniform"]))
def test_every_word_is_in_one_span_and_every_frame_has_one_word(words: int, key: int, lengths: Any) -> None:
    config = SpanConfig(kind=lengths, speech_min=1, speech_max=9, text_min=2, text_max=6)
    document = speech_document(key % 1000, words)
    example = interleaved_example(document, config, uniforms(draws_needed(words, config), 1, "test", key))
    assert (example.spans[:, 2] > example.spans[:, 1]).all()
    frames = np.append(document.word_frames[:, 0], len(document.speech_ids))
    frames[0] = 0
    pieces = np.append(document.word_tokens[:, 0], len(document.token_ids))
    word = 0
    for kind, begin, end in example.spans:
        edges = frames if kind == SPEECH else pieces
        assert edges[word] == begin
        word = int(np.searchsorted(edges, end))
        assert edges[word] == end
    assert word == words


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 200),
    st.sampled_from(["none", "static", "aligned"]),
    st.sampled_from([("separate", 32), ("merged", 4)]),
    st.booleans(),
    st.lists(st.tuples(st.integers(6, 60), st.integers(0, 60)), min_size=1, max_size=5),
    st.booleans(),
)
def test_chunks_fit_and_lose_nothing(
    key: int, strategy: Any, cut: Any, text: bool, rooms: list[tuple[int, int]], empty: bool
) -> None:
    """Whatever room rows have: the chunks of an example are the example, and none is larger than its room."""
    config = PatchingConfig(strategy=strategy, silence=cut[0], max_length=cut[1])
    patcher = PatchingSchedule(config, 0, 0).choose(0, 0.0)
    spans = SpanConfig(speech_min=1, speech_max=9)
    document = text_document(key) if text else speech_document(key)
    draws = uniforms(draws_needed(len(document.word_frames), spans), 0, "test", key)
    example = text_example(document) if text else interleaved_example(document, spans, draws)
    position, got, number = first_position(example), [], 0
    markers = [VOCABULARY.text_marker, VOCABULARY.speech_marker]
    while position is not None:
        units, excess = rooms[number % len(rooms)]
        capacity = Capacity(units, max(excess, 31 if empty else 0))
        packed = pack_example(example, position, patcher, capacity, VOCABULARY, empty)
        number += 1
        if packed is None:
            assert not empty
            rooms = [(units + 40, excess + 40)]
            continue
        chunk = packed.chunk
        assert len(chunk.patch_length) <= capacity.units
        assert len(chunk.tokens) - len(chunk.patch_length) <= capacity.excess
        assert chunk.patch_length.sum() == len(chunk.tokens)
        assert chunk.tokens[0] == VOCABULARY.bos
        assert (chunk.tokens[-1] == VOCABULARY.eos) == (packed.rest is None)
        assert text or chunk.tokens[1] in markers
        inner = chunk.tokens[1:-1] if packed.rest is None else chunk.tokens[1:]
        assert len(inner), "a chunk holds at least one token of the document"
        got += inner.tolist()
        assert packed.rest != position
        position = packed.rest
    plain = [t for t in got if t not in markers]
    assert plain == everything(example)


def everything(example: Example) -> list[int]:
    tokens: list[int] = []
    for kind, begin, end in example.spans:
        source = example.document.speech_ids.astype(int) + TEXT if kind == SPEECH else example.document.token_ids
        tokens += source[begin:end].tolist()
    return tokens


def test_the_rest_of_a_cut_document_begins_at_a_word_with_a_fresh_phase() -> None:
    document = speech_document(5, words=30)
    example = Example(document, np.array([[SPEECH, 0, len(document.speech_ids)]]))
    patcher = static_patcher(4)
    packed = pack_example(example, first_position(example), patcher, Capacity(20, 200), VOCABULARY, True)
    assert packed is not None
    assert packed.rest is not None
    assert packed.rest.at in document.word_frames[:, 0]
    assert packed.chunk.patch_length[:2].tolist() == [1, 1]
    rest = pack_example(example, packed.rest, patcher, Capacity(500, 900), VOCABULARY, True)
    assert rest is not None
    assert rest.chunk.tokens[:2].tolist() == [VOCABULARY.bos, VOCABULARY.speech_marker]
    assert (rest.chunk.patch_length[2:-2] == 4).all()


def test_a_word_longer_than_a_row_is_cut_at_a_unit_and_one_that_never_fits_is_refused() -> None:
    document = speech_document(3, words=4, longest_word=60)
    example = Example(document, np.array([[SPEECH, 0, len(document.speech_ids)]]))
    patcher = static_patcher(4)
    packed = pack_example(example, first_position(example), patcher, Capacity(4, 12), VOCABULARY, True)
    assert packed is not None
    assert packed.chunk.patch_length.tolist() == [1, 1, 4, 4]
    with pytest.raises(UserError, match=r"speech-3.*raise data.units or data.tokens"):
        pack_example(example, first_position(example), patcher, Capacity(4, 2), VOCABULARY, True)


@pytest.mark.parametrize("task", ["asr", "tts"])
def test_tasks_learn_the_response_alone_and_stay_whole(task: str) -> None:
    document = speech_document(8, words=6)
    patcher = static_patcher(4)
    example = task_example(document, task)
    packed = pack_example(example, first_position(example), patcher, Capacity(500, 500), VOCABULARY, True)
    assert packed is not None
    tokens = packed.chunk.tokens
    response = VOCABULARY.text_marker if task == "asr" else VOCABULARY.speech_marker
    learnt = packed.chunk.learnt
    assert learnt is not None
    assert tokens[np.argmax(learnt) - 1] == response
    assert tokens[-1] == VOCABULARY.eos
    assert pack_example(example, first_position(example), patcher, Capacity(20, 500), VOCABULARY, True) is None


def test_draws_are_pinned() -> None:
    """The bit stream is a contract: other numbers here mean that no old run can be continued."""
    assert uniforms(3, 7, "spans", 1, 2, 3).tolist() == pytest.approx(PINNED_UNIFORMS, abs=0)
    assert permutation(8, 7, "shards", 1).tolist() == PINNED_PERMUTATION
    assert uniforms(1, 7, "spans", 1, 2, 4)[0] != uniforms(1, 7, "spans", 1, 2, 3)[0]
    assert uniforms(1, 8, "spans", 1, 2, 3)[0] != uniforms(1, 7, "spans", 1, 2, 3)[0]
    assert uniforms(1, 7, "strategy", 1, 2, 3)[0] != uniforms(1, 7, "spans", 1, 2, 3)[0]


PINNED_UNIFORMS = [0.2957358138907147, 0.19676901051657059, 0.8866036383071132]
PINNED_PERMUTATION = [0, 5, 1, 6, 4, 3, 2, 7]
