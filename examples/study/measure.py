"""What is measured of a model: choices in four directions, their margins, held-out speech bits and text bits."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from examples.study.arms import StudyPlan
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.evaluation.choice import Score, run_choice, score_chunks
from megatron_lst.evaluation.heldout import continuation_choices, word_span, word_windows
from megatron_lst.evaluation.items import ChoiceItem, ScoredChunk, scored_chunk
from megatron_lst.patching.chunks import document_span
from megatron_lst.patching.strategies import Patcher
from megatron_lst.vocabulary import Vocabulary

DIRECTIONS = ("S->S", "T->S", "S->T", "T->T")
MODALITIES = ("speech", "text")


class Measures:
    """Scores a model on held-out documents; the items are the same for every arm and seed.

    Args:
        patcher: how the arm's speech is cut for evaluation.
    """

    def __init__(self, plan: StudyPlan, held_out: Sequence[Document], patcher: Patcher, vocabulary: Vocabulary) -> None:
        self._plan, self._vocabulary, self._patcher = plan, vocabulary, patcher
        self._documents = list(held_out)[: plan.final_documents]
        self._items = {d: make_items(plan, held_out, d, patcher) for d in DIRECTIONS}

    def __call__(self, score: Score, *, final: bool) -> dict[str, Any]:
        """Choices of each direction: `right` (0, 1/2, 1) and `margin`, in nats a token, of every item; and bits.

        The margin is the mean log-probability of the true continuation's tokens minus that of the false one's: it
        moves long before choices turn right. `speech` are bits a second of each document, `text` bits a word.
        """
        plan = self._plan
        found: dict[str, Any] = {}
        for direction, items in self._items.items():
            result = run_choice(
                f"study {direction}",
                items[: plan.final_items if final else plan.items],
                score,
                self._vocabulary,
                self._patcher,
                plan.units,
                rows_at_once=32,
            )
            found[direction] = {
                "right": result.credits().tolist(),
                "margin": [float(_margin(item.scores("mean"), item.answer)) for item in result.items],
            }
        documents = self._documents if final else self._documents[: plan.documents]
        for modality in MODALITIES:
            found[modality] = self._bits(documents, modality, score)
        return found

    def _bits(self, documents: Sequence[Document], modality: str, score: Score) -> list[float]:
        """Bits that each document's speech (a second) or text (a word) takes, the other withheld.

        In stretches that an unpatched row can hold, the same ones for every arm and both modalities: else patched
        models would get a longer context here.
        """
        chunks: list[ScoredChunk] = []
        owners, amounts = [], np.zeros(len(documents))
        for owner, document in enumerate(documents):
            word = 0
            for begin, end, words in word_windows(document, self._plan.units - 2):
                if modality == "speech":
                    span = document_span(document, "speech", begin, end, self._patcher)
                    amounts[owner] += (end - begin) / float(self._vocabulary.rate)
                else:
                    span = word_span(document, word, word + words, "text", self._patcher)
                    amounts[owner] += words
                word += words
                chunks.append(scored_chunk([span], 0, self._vocabulary, self._patcher, document.id))
                owners.append(owner)
        scores = score_chunks(chunks, score, self._vocabulary, self._plan.units, rows_at_once=32)
        bits = np.bincount(owners, [-float(s.sum(dtype=np.float64)) / np.log(2) for s in scores], len(documents))
        return [float(b) for b in bits / amounts]


def make_items(plan: StudyPlan, held_out: Sequence[Document], direction: str, patcher: Patcher) -> list[ChoiceItem]:
    """The items of a direction; the same prompts and continuations in each, spoken or written.

    The wrong words are from another document of the same speaker, so that no voice gives them away; speakers in turns.
    """
    speakers = sorted({document.speaker for document in held_out})
    own = [[document for document in held_out if document.speaker == speaker] for speaker in speakers]
    made = [
        continuation_choices(
            documents,
            direction,
            patcher,
            prompt_words=plan.prompt_words,
            continuation_words=plan.continuation_words,
            items=plan.final_items,
        )
        for documents in own
        if len(documents) > 1
    ]
    turns = chain.from_iterable(zip_longest(*made))
    return [item for item in turns if item is not None][: plan.final_items]


def _margin(scores: np.ndarray | None, answer: int) -> float:
    assert scores is not None, "the mean is always defined"
    return float(scores[answer] - scores[1 - answer])


def read_held_out(shards: ShardSet) -> list[Document]:
    """All documents, in an order that mixes speakers."""
    documents = [shards.get(i) for i in range(len(shards))]
    return [documents[i] for i in np.random.default_rng(0).permutation(len(documents))]
