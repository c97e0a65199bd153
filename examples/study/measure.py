"""What is measured of a model: choices in four directions, their margins, and held-out speech bits per second."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from examples.study.arms import StudyPlan
from examples.study.world import FIRST_WORD, World
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.evaluation.choice import Score, run_choice
from megatron_lst.evaluation.heldout import continuation_choices, speech_bits
from megatron_lst.evaluation.items import ChoiceItem
from megatron_lst.patching.strategies import Patcher

DIRECTIONS = ("S->S", "T->S", "S->T", "T->T")
BITS_DOCUMENTS = 50


class Measures:
    """Scores a model on held-out documents; the items are the same for every arm and seed.

    Args:
        patcher: how the arm's speech is cut for evaluation.
    """

    def __init__(self, plan: StudyPlan, held_out: Sequence[Document], patcher: Patcher) -> None:
        self._plan, self._documents = plan, list(held_out)
        self._patcher = patcher
        self._items = {d: make_items(plan, held_out, d, patcher) for d in DIRECTIONS}

    def __call__(self, score: Score, *, final: bool) -> dict[str, Any]:
        """Choices of each direction: `right` (0, 1/2, 1) and `margin`, in nats a token, of every item; and bits.

        The margin is the mean log-probability of the true continuation's tokens minus that of the false one's: it
        moves long before choices turn right.
        """
        vocabulary = self._plan.corpus.world.vocabulary
        count = self._plan.final_items if final else self._plan.items
        found: dict[str, Any] = {}
        for direction, items in self._items.items():
            result = run_choice(
                f"study {direction}", items[:count], score, vocabulary, self._patcher, self._plan.units, rows_at_once=32
            )
            found[direction] = {
                "right": result.credits().tolist(),
                "margin": [float(_margin(item.scores("mean"), item.answer)) for item in result.items],
            }
        # Windows that an unpatched row can hold, for every arm: else patched models would get a longer context here.
        bits = speech_bits(
            self._documents[:BITS_DOCUMENTS],
            score,
            vocabulary,
            self._patcher,
            self._plan.units,
            max_seconds=(self._plan.units - 2) / float(vocabulary.rate),
        )
        return {**found, "bits_per_second": bits.bits_per_second}


def make_items(plan: StudyPlan, held_out: Sequence[Document], direction: str, patcher: Patcher) -> list[ChoiceItem]:
    """The items of a direction; the same prompts and continuations in each, spoken or written."""
    return continuation_choices(
        held_out,
        direction,
        patcher,
        prompt_words=plan.prompt_words,
        continuation_words=plan.continuation_words,
        items=plan.final_items,
    )


def _margin(scores: np.ndarray | None, answer: int) -> float:
    assert scores is not None, "the mean is always defined"
    return float(scores[answer] - scores[1 - answer])


def read_held_out(shards: ShardSet) -> list[Document]:
    return [shards.get(i) for i in range(len(shards))]


def ceiling(world: World, items: Sequence[ChoiceItem]) -> float:
    """Share of written items that one gets right who knows the grammar exactly."""
    words: Callable[[Any], np.ndarray] = lambda span: np.asarray(span.ids, np.int64) - FIRST_WORD
    right = []
    for item in items:
        (prompt,) = item.prompt
        scores = [world.log_probability(np.concatenate([words(prompt), words(c)])) for c in item.candidates]
        best = np.flatnonzero(np.array(scores) >= max(scores) - 1e-9)
        right.append((item.answer in best) / len(best))
    return float(np.mean(right))
