"""Held-out speech of several codebooks: bits a second, choice items with and without word times, speed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import run_choice
from megatron_lst.evaluation.heldout import continuation_choices, speech_bits
from megatron_lst.evaluation.items import ChoiceItem
from megatron_lst.evaluation.speed import measure, random_model
from megatron_lst.patching.chunks import speech_span
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import ALIGNED, Patcher, static_patcher
from megatron_lst.vocabulary import IGNORE
from tests.data.test_codebooks import BOOKS, DEPTH, V, spoken


def segmented(number: int, segments: int, frames: int = 9) -> Document:
    rng = np.random.default_rng(number)
    edges = np.arange(segments + 1, dtype=np.int32)
    spans = np.stack([edges[:-1], edges[1:]], 1)
    return Document(
        id=f"g{number}", source="s", text="x" * segments, token_ids=rng.integers(3, 60, 4 * segments).astype(np.int32),
        speech_ids=(rng.integers(0, BOOKS, (segments * frames, DEPTH)) + V.offsets).astype(np.int16),
        segment_frames=spans * np.int32(frames), segment_tokens=spans * np.int32(4),
    )  # fmt: skip


def two_nats(rows: Sequence[Row]) -> list[np.ndarray]:
    for row in rows:
        row.check(V)
    return [np.where(r.labels == IGNORE, 0, -2.0).astype(np.float32) for r in rows]


@pytest.mark.parametrize(("size", "units"), [(8, 20), (16, 20), (1, 200), (8, 500)])
def test_bits_a_second_are_those_of_whole_frames(size: int, units: int) -> None:
    """Every frame is counted once, whatever the windows: 8 codes of 2 nats, 12.5 times a second."""
    documents = [segmented(1, 5), segmented(2, 1, frames=70)]
    found = speech_bits(documents, two_nats, V, static_patcher(size), units)
    assert found.seconds == pytest.approx((45 + 70) / 12.5)
    assert found.bits_per_second == pytest.approx(12.5 * DEPTH * 2 / np.log(2))
    assert found.bits_per_token == pytest.approx(2 / np.log(2))
    assert (found.words, found.bits_per_word, found.left_out) == (0, None, 0)


@pytest.mark.parametrize("patcher", [static_patcher(16), Patcher(ALIGNED, PatchingConfig(max_length=32))])
def test_timed_words_give_the_same_seconds(patcher: Patcher) -> None:
    document = spoken(4, 60)
    found = speech_bits([document], two_nats, V, patcher, 300)
    assert found.seconds == pytest.approx(len(document.speech_ids) / 12.5)
    assert found.bits_per_word is not None and found.words == 60


@pytest.mark.parametrize("direction", ["S->S", "T->T", "S->T", "T->S"])
@pytest.mark.parametrize("timed", [True, False])
def test_choice_items_hold_whole_frames(direction: str, timed: bool) -> None:
    documents = [spoken(i, 60) if timed else segmented(i, 2 + i % 3) for i in range(4)]
    items = continuation_choices(documents, direction, static_patcher(16))
    assert len(items) >= 4
    result = run_choice("t", items, two_nats, V, static_patcher(16), 400)
    assert not result.refused
    if direction.endswith("S"):
        assert all(len(c.ids) % DEPTH == 0 for item in items for c in item.candidates)


def test_items_that_break_frames_are_refused() -> None:
    good = (V.offsets[None] + np.zeros((3, DEPTH), np.int64)).ravel()

    def item(ids: np.ndarray) -> ChoiceItem:
        return ChoiceItem("q", (speech_span(good),), (speech_span(good), speech_span(ids)), 0)

    item(good).check(V)
    with pytest.raises(UserError, match="item q: candidate 1, token 22: speech ends inside a frame, after 7 of its 8"):
        item(good[:-1]).check(V)
    with pytest.raises(UserError, match="candidate 1, token 0: of codebook 1, not of codebook 0, whose turn it is"):
        item(good[1:]).check(V)


def test_speed_is_measured_over_whole_frames() -> None:
    model = ModelConfig(
        hidden=16, layers=1, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1, window=16
    )
    config = Config(vocabulary=V, model=model, patching=PatchingConfig(strategy="static", size=8))
    found = measure(random_model(config, "cpu", torch.float32), prompt=3, tokens=20, batch=2, repeats=1)
    assert found.tokens == 2 * 24
    assert found.global_passes == 2, "a frame a patch; the last token is not fed"
