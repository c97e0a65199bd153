"""Choice items: layout, scores against the oracle's logits, ties, refusals, and packing that changes nothing."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import ModelConfig, PatchingConfig
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import ItemScore, run_choice
from megatron_lst.evaluation.items import ChoiceItem, pack_chunks, scored_chunk
from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.patching.chunks import Span, speech_span, text_span
from megatron_lst.patching.row import Row, assemble_row
from megatron_lst.patching.strategies import ALIGNED, Patcher, static_patcher
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import IGNORE, Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=1, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1, init_std=0.4
)
B, T, S = V.bos, V.text_marker, V.speech_marker


def parts_of(*spans: Span, size: int = 3) -> tuple[list[int], list[int], list[int]]:
    one = scored_chunk(spans, len(spans) - 1, V, static_patcher(size), "x")
    row = assemble_row([one.chunk], len(one.chunk.patch_length), V)
    row.check(V)
    return one.chunk.tokens.tolist(), one.chunk.patch_length.tolist(), row.labels[one.scored].tolist()


def test_layouts_of_the_four_directions() -> None:
    units, more, words = speech_span([0, 1, 2, 3]), speech_span([4, 5]), text_span([5, 6])
    assert parts_of(units, more) == ([B, S, 24, 25, 26, 27, 28, 29], [1, 1, 3, 3], [28, 29])
    assert parts_of(text_span([7]), words) == ([B, 7, 5, 6], [1, 1, 1, 1], [5, 6])
    assert parts_of(units, words) == ([B, S, 24, 25, 26, 27, T, 5, 6], [1, 1, 3, 1, 1, 1, 1], [5, 6])
    assert parts_of(words, more) == ([B, 5, 6, S, 28, 29], [1, 1, 1, 1, 2], [28, 29])


def test_the_patch_counter_goes_on_and_aligned_spans_end_at_the_join() -> None:
    one = scored_chunk([speech_span([0] * 4), speech_span([1] * 5)], 1, V, static_patcher(3), "x")
    assert one.chunk.patch_length.tolist() == [1, 1, 3, 3, 3]
    aligned = Patcher(ALIGNED, PatchingConfig())
    spans = [speech_span([0] * 4, [[1, 4]]), speech_span([1] * 5, [[0, 5]])]
    two = scored_chunk(spans, 1, V, aligned, "x")
    assert two.chunk.patch_length.tolist() == [1, 1, 1, 3, 5]
    assert not two.chunk.closes_late.any()
    with pytest.raises(UserError, match="item x: its spoken words have no times"):
        scored_chunk([spans[0], speech_span([1])], 1, V, aligned, "x")


def random_items(count: int = 7) -> list[ChoiceItem]:
    rng = np.random.default_rng(0)

    def span(modality: str) -> Span:
        n = int(rng.integers(1, 9))
        return (
            speech_span(rng.integers(9, size=n))
            if modality == "speech"
            else text_span(rng.integers(3, 24, size=n), n + 2)
        )

    kinds = [("speech", "speech"), ("text", "text"), ("speech", "text"), ("text", "speech")]
    return [
        ChoiceItem(f"i{i}", (span(kinds[i % 4][0]),), (span(kinds[i % 4][1]), span(kinds[i % 4][1])), int(i % 2))
        for i in range(count)
    ]


def models() -> tuple[ReferenceModel, LatentSpeechTextModel]:
    oracle = ReferenceModel(TINY, V, seed=4).double()
    return oracle, LatentSpeechTextModel.from_weights(TINY, V, oracle.state_dict(), 3)


def test_sums_are_the_models_log_probabilities_and_packing_changes_nothing() -> None:
    oracle, model = models()
    items = random_items()
    packed = run_choice("t", items, model.score, V, static_patcher(3), 40)
    for item, result in zip(items, packed.items, strict=True):
        for candidate, total, tokens in zip(item.candidates, result.sums, result.tokens, strict=True):
            one = scored_chunk((*item.prompt, candidate), 1, V, static_patcher(3), item.id)
            row = assemble_row([one.chunk], len(one.chunk.patch_length), V)
            with torch.no_grad():
                log_p = oracle(row).log_softmax(-1).numpy()
            wanted = sum(log_p[t, row.tokens[t + 1]] for t in one.scored)
            assert tokens == len(candidate.ids)
            np.testing.assert_allclose(total, wanted, rtol=1e-5)
    alone = run_choice("t", items, model.score, V, static_patcher(3), 19, rows_at_once=1)
    np.testing.assert_allclose([i.sums for i in alone.items], [i.sums for i in packed.items], rtol=1e-5)
    assert 0 <= packed.accuracy().mean <= 1  # type: ignore[union-attr]


def test_mean_sum_and_per_character_can_disagree_and_ties_are_shared() -> None:
    item = ItemScore("a", 0, (-4.0, -3.0), (4, 2), (2, 30))
    assert [item.credit(k) for k in ("mean", "sum", "per_character")] == [1.0, 0.0, 0.0]
    assert ItemScore("a", 1, (-2.0, -2.0), (1, 1), (0, 0)).credit("mean") == 0.5
    assert ItemScore("a", 1, (-2.0, -2.0), (1, 1), (0, 0)).credit("per_character") is None
    assert ItemScore("a", 2, (-1.0, -1.0, -5.0), (1, 1, 1), (0, 0, 0)).credit("mean") == 0.0


def likes_even(rows: Sequence[Row]) -> list[np.ndarray]:
    """A scorer that prefers even labels: what is right is known without a model."""
    return [np.where(r.labels == IGNORE, 0, -1.0 - r.labels % 2).astype(np.float32) for r in rows]


def test_accuracy_counts_what_the_scorer_prefers() -> None:
    items = [
        ChoiceItem(str(i), (text_span([4]),), (text_span([6, 8]), text_span([5, 7])), answer)
        for i, answer in enumerate([0, 0, 0, 1])
    ]
    result = run_choice("t", items, likes_even, V, static_patcher(3), 40)
    assert result.accuracy("mean").mean == 0.75  # type: ignore[union-attr]
    assert result.chance == 0.5
    flipped = run_choice("t", [replace(i, answer=1 - i.answer) for i in items], likes_even, V, static_patcher(3), 40)
    assert flipped.accuracy("mean").mean == 0.25  # type: ignore[union-attr]


def test_bad_items_are_refused_by_id_and_the_rest_goes_on() -> None:
    good = ChoiceItem("good", (text_span([4]),), (text_span([6]), text_span([5])), 0)
    bad = [
        replace(good, id="no-ending", candidates=(text_span([6]), text_span([]))),
        replace(good, id="no-prompt", prompt=(text_span([]),)),
        replace(good, id="too-long", prompt=(text_span([4] * 50),)),
        replace(good, id="one-choice", candidates=(text_span([6]),)),
        replace(good, id="ids", candidates=(text_span([6]), text_span([24]))),
        replace(good, id="answer", answer=2),
        replace(good, id="mixed", candidates=(text_span([6]), speech_span([1]))),
        replace(good, id="words", candidates=(speech_span([1, 2], [[0, 3]]), speech_span([1], [[0, 1]]))),
        good,
    ]
    result = run_choice("t", [good, *bad], likes_even, V, static_patcher(3), 40)
    assert [i.id for i in result.items] == ["good"]
    assert set(result.refused) == {i.id for i in bad}
    assert "stands there twice" in result.refused["good"]
    assert "missing audio" in result.refused["no-ending"]
    assert "54 units" in result.refused["too-long"] or "52 units" in result.refused["too-long"]
    with pytest.raises(UserError, match="no item can be scored"):
        run_choice("t", bad[:3], likes_even, V, static_patcher(3), 40)


def test_rows_are_packed_full() -> None:
    documents = [
        scored_chunk([text_span([5] * n), text_span([6])], 1, V, static_patcher(3), str(n)) for n in (3, 3, 8, 1)
    ]
    rows, place = pack_chunks(documents, 10, V)
    assert place == [(0, 0), (0, 5), (1, 0), (2, 0)]
    assert all(r.units == 10 for r in rows)


def test_ties_are_counted_and_named() -> None:
    from megatron_lst.evaluation.choice import ChoiceResult
    from megatron_lst.evaluation.report import markdown, summarise

    items = [
        ItemScore("same", 0, (-4.0, -4.0), (2, 2), (4, 4)),
        ItemScore("mean", 0, (-4.0, -2.0), (2, 1), (4, 4)),  # tied by the mean alone
        ItemScore("clear", 0, (-1.0, -2.0), (1, 1), (4, 4)),
    ]
    found = summarise(ChoiceResult("task", 0.5, items), "T->T")
    assert found["ties"] == {"mean": ["same", "mean"], "sum": ["same"], "per_character": ["same"]}
    assert "| task | T->T | 3 (2 tied) |" in markdown({}, [found], {})
    assert "tied" not in markdown({}, [summarise(ChoiceResult("task", 0.5, items[2:]), "T->T")], {})
