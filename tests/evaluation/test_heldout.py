"""Held-out losses, speech bits per second, and choice items made from documents."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from megatron_lst.config.schema import PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import run_choice
from megatron_lst.evaluation.heldout import continuation_choices, losses, speech_bits, word_windows
from megatron_lst.evaluation.items import scored_chunk
from megatron_lst.patching.chunks import speech_span, text_span
from megatron_lst.patching.row import Row, assemble_row
from megatron_lst.patching.strategies import ALIGNED, Patcher, static_patcher
from megatron_lst.vocabulary import IGNORE, Vocabulary

V = Vocabulary(text_size=64, speech_size=40, multiple=8)


def spoken(name: str, words: int, first: int = 0) -> Document:
    """Word w is text id 3 + (first + w) % 60 and three or four frames of unit (first + w) % 40, gaps between some."""
    frames, spans = [], []
    for w in range(words):
        begin = len(frames)
        frames += [(first + w) % 40] * (3 + w % 2)
        spans.append([begin, len(frames)])
        frames += [39] * (w % 3 == 0)
    ids = np.array([3 + (first + w) % 60 for w in range(words)], np.int32)
    ordinal = np.arange(words, dtype=np.int32)[:, None]
    document = Document(
        id=name, source="s", text="x" * 5 * words, token_ids=ids, speech_ids=np.array(frames, np.int16),
        word_frames=np.array(spans, np.int32), word_tokens=np.hstack([ordinal, ordinal + 1]),
        word_chars=np.hstack([5 * ordinal, 5 * ordinal + 4]), word_scores=np.ones(words, np.float32),
    )  # fmt: skip
    document.check(V.speech_size, V.text_size)
    return document


def constant(nats: float):  # type: ignore[no-untyped-def]
    def score(rows: Sequence[Row]) -> list[np.ndarray]:
        return [np.where(r.labels == IGNORE, 0, -nats).astype(np.float32) for r in rows]

    return score


def test_losses_by_modality() -> None:
    one = scored_chunk([speech_span([1, 2, 3]), text_span([5, 6])], 0, V, static_patcher(2), "d")
    row = assemble_row([one.chunk], 12, V)

    def score(rows: Sequence[Row]) -> list[np.ndarray]:
        labels = rows[0].labels
        values = np.where(V.is_speech(labels), -1.0, np.where(labels >= V.text_marker, -3.0, -2.0))
        return [np.where(labels == IGNORE, 0, values).astype(np.float32)]

    result = losses([row], score, V)
    assert (result.loss_speech, result.loss_text, result.loss_marker) == (1.0, 2.0, 3.0)
    assert result.targets == 7
    assert result.loss == pytest.approx((3 * 1 + 2 * 2 + 2 * 3) / 7)
    assert np.isnan(losses([row], constant(1.0), Vocabulary(text_size=200)).loss_speech)


def test_bits_per_second_of_a_uniform_model() -> None:
    documents = [spoken("a", 30), spoken("b", 11)]
    for size in (1, 4):
        result = speech_bits(documents, constant(np.log(8)), V, static_patcher(size), 200)
        assert result.bits_per_token == pytest.approx(3)
        assert result.bits_per_second == pytest.approx(3 * 25)
        assert result.words == 41
        assert result.seconds == pytest.approx(sum(len(d.speech_ids) for d in documents) / 25)
        assert result.bits_per_word == pytest.approx(3 * result.seconds * 25 / 41)
    with pytest.raises(UserError, match="no document has speech"):
        speech_bits([], constant(1.0), V, static_patcher(4), 200)


def test_bits_per_second_of_unit_bpe_are_of_the_audio() -> None:
    """Pieces of 1 to 3 frames: a uniform model spends its bits on fewer tokens, over the same seconds."""
    documents = [spoken("a", 30), spoken("b", 11)]
    frames_of = np.arange(40) % 3 + 1
    frames = sum(int(frames_of[d.speech_ids].sum()) for d in documents)
    tokens = sum(len(d.speech_ids) for d in documents)
    result = speech_bits(documents, constant(np.log(8)), V, static_patcher(1), 200, frames_of=frames_of)
    assert result.seconds == pytest.approx(frames / 25)
    assert result.bits_per_second == pytest.approx(3 * tokens * 25 / frames)
    assert (
        result.bits_per_second < speech_bits(documents, constant(np.log(8)), V, static_patcher(1), 200).bits_per_second
    )
    for begin, end, _ in word_windows(documents[0], 20, frames_of):
        assert frames_of[documents[0].speech_ids[begin:end]].sum() <= 20


def test_windows_hold_whole_words_and_lose_none() -> None:
    document = spoken("a", 30)
    windows = word_windows(document, 20)
    assert sum(count for *_, count in windows) == 30
    assert windows[0][0] == 0
    assert windows[-1][1] == len(document.speech_ids)
    assert all(a[1] == b[0] for a, b in zip(windows, windows[1:], strict=False))
    assert all(end - begin <= 20 for begin, end, _ in windows)
    assert word_windows(document, 3)[0][2] == 1, "words that do not fit are left out, the rest stay whole"


@pytest.mark.parametrize("direction", ["S->S", "T->T", "S->T", "T->S"])
def test_choices_hold_the_true_continuation(direction: str) -> None:
    documents = [spoken(f"d{i}", 40, first=7 * i) for i in range(4)]
    items = continuation_choices(documents, direction, static_patcher(4), prompt_words=6, continuation_words=4, seed=3)
    assert items == items  # frozen; determinism below is on the tokens
    again = continuation_choices(documents, direction, static_patcher(4), prompt_words=6, continuation_words=4, seed=3)
    assert [i.answer for i in items] == [i.answer for i in again]
    assert len(items) == 4 * 4
    assert 0 < np.mean([i.answer for i in items]) < 1

    def knows(rows: Sequence[Row]) -> list[np.ndarray]:
        """Follows the documents' rule: ids go up by one from word to word (units modulo 40, text modulo 60)."""
        result = []
        for row in rows:
            values = np.full(len(row.tokens), -5.0, np.float32)
            word = None
            for t in range(len(row.tokens) - 1):
                token, label = int(row.tokens[t]), int(row.labels[t])
                if token == V.bos:
                    word = None
                elif 3 <= token < V.text_size:
                    word = (token - 3) % 20
                elif V.is_speech(row.tokens[t]) and token != V.text_size + 39:
                    word = (token - V.text_size) % 20
                if word is None or label == IGNORE:
                    continue
                if 3 <= label < V.text_size:
                    ahead = ((label - 3) % 20 - word) % 20
                else:
                    ahead = ((label - V.text_size) % 20 - word) % 20
                if ahead in (0, 1):
                    values[t] = -1.0
            values[row.labels == IGNORE] = 0
            result.append(values)
        return result

    result = run_choice("c", items, knows, V, static_patcher(4), 300)
    assert result.accuracy("mean").mean > 0.9  # type: ignore[union-attr]
    guess = run_choice("c", items, constant(1.0), V, static_patcher(4), 300)
    assert guess.accuracy("mean").mean == 0.5  # type: ignore[union-attr]


def test_in_one_voice_the_wrong_words_are_the_documents_own() -> None:
    documents = [spoken("long", 40), spoken("short", 13, first=20)]
    options: dict[str, Any] = {"prompt_words": 6, "continuation_words": 4}
    items = continuation_choices(documents, "T->T", static_patcher(4), same_document=True, **options)
    assert [item.id.split("@")[0] for item in items] == ["long"] * 4, "13 words leave no four beside ten"
    for item in items:
        start = int(item.id.split("@")[1])
        wrong = item.candidates[1 - item.answer].ids[0] - 3
        assert wrong + 4 <= start or wrong >= start + 10, "never words of the item itself"
    assert len(continuation_choices(documents, "T->T", static_patcher(4), **options)) == 5, (
        "from another document there are some"
    )
    assert continuation_choices(documents[1:] * 2, "S->S", static_patcher(4), same_document=True, **options) == []


@pytest.mark.parametrize("silence", ["separate", "merged"])
def test_aligned_items_carry_the_words_boundaries(silence: Any) -> None:
    """And their chunks are cut as training cuts them: with merged silence a gap is part of the word before it."""
    documents = [spoken(f"d{i}", 40, first=7 * i) for i in range(2)]
    patcher = Patcher(ALIGNED, PatchingConfig(silence=silence))
    item = continuation_choices(documents, "S->S", patcher, prompt_words=6, continuation_words=4)[0]
    item.check(V)
    (prompt,) = item.prompt
    assert prompt.segments is not None
    assert len(prompt.segments) == 6
    chunk = scored_chunk((prompt, item.candidates[0]), 1, V, patcher, item.id).chunk
    lengths = np.diff(prompt.segments, axis=1).ravel() if silence == "separate" else np.diff(
        np.append(np.append(0, prompt.segments[1:, 0]), len(prompt.ids))
    )  # fmt: skip
    patches = chunk.patch_length[2:].tolist()
    if silence == "merged":
        assert patches[:6] == lengths.tolist()
    else:
        assert [n for n in patches if n != 1][:6] == lengths.tolist(), "gaps are single frames of their own"
    bits = speech_bits(documents, constant(np.log(8)), V, patcher, 200)
    assert bits.bits_per_token == pytest.approx(3)


def test_refuses_too_little_data_and_unknown_directions() -> None:
    with pytest.raises(UserError, match="found 1"):
        continuation_choices([spoken("a", 40), spoken("b", 5)], "S->S", static_patcher(4))
    with pytest.raises(UserError, match=r"expected one of S->S"):
        continuation_choices([], "A->B", static_patcher(4))
