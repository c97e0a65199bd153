"""Likelihood choice: the candidate with the highest score, under three scores side by side (SPEC 9).

Mean log-probability is the headline; the sum and, for text, the score per character are reported beside it, for they
can rank very differently.  Ties count 1 / (number of tied candidates).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.evaluation.items import ChoiceItem, ScoredChunk, pack_chunks, scored_chunk
from megatron_lst.evaluation.statistics import Interval, bootstrap
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import Patcher
from megatron_lst.vocabulary import Vocabulary

Score = Callable[[Sequence[Row]], list[np.ndarray]]
"""Rows -> float32 [N] each, log p(label) of every token: `Engine.score`, or the inference model's."""
Progress = Callable[[int, int], None]
"""Called with (done, all)."""


@dataclass(frozen=True)
class ItemScore:
    """Scores of one item's candidates; `characters` are 0 for speech."""

    id: str
    answer: int
    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    characters: tuple[int, ...]

    def scores(self, kind: str) -> np.ndarray | None:
        """[candidates] under `mean`, `sum` or `per_character`; None where characters are unknown."""
        total = np.array(self.sums)
        if kind == "sum":
            return total
        if kind == "mean":
            return total / np.array(self.tokens)
        return total / np.array(self.characters) if all(self.characters) else None

    def credit(self, kind: str) -> float | None:
        """1 right, 0 wrong, a share for ties."""
        scores = self.scores(kind)
        if scores is None:
            return None
        best = np.flatnonzero(scores == scores.max())
        return float(self.answer in best) / len(best)

    def is_tied(self, kind: str) -> bool:
        """Several candidates have the highest score."""
        scores = self.scores(kind)
        return scores is not None and int((scores == scores.max()).sum()) > 1


@dataclass
class ChoiceResult:
    """A task's outcome.

    Attributes:
        task: name.
        chance: accuracy of guessing.
        items: scores of every item that could be scored.
        refused: item id -> why not.
    """

    task: str
    chance: float
    items: list[ItemScore] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def credits(self, kind: str = "mean") -> np.ndarray:
        """[items]; empty where the score is not defined."""
        values = [item.credit(kind) for item in self.items]
        return np.array([v for v in values if v is not None])

    def accuracy(self, kind: str = "mean") -> Interval | None:
        values = self.credits(kind)
        return bootstrap(values) if len(values) else None


def run_choice(
    task: str,
    items: Sequence[ChoiceItem],
    score: Score,
    vocabulary: Vocabulary,
    patcher: Patcher,
    units: int,
    *,
    needs_prompt: bool = True,
    refused: dict[str, str] | None = None,
    rows_at_once: int = 8,
    progress: Progress = lambda done, total: None,
) -> ChoiceResult:
    """Score every candidate of every item; items that cannot be scored are refused by id and the rest goes on.

    Args:
        patcher: how speech is cut.
        units: U of the rows.
        refused: items that a reader refused already.

    Raises:
        UserError: not one item is left.
    """
    chunks: list[ScoredChunk] = []
    kept: list[ChoiceItem] = []
    problems = dict(refused or {})
    seen: set[str] = set()
    for item in items:
        try:
            if item.id in seen:
                raise UserError(f"item {item.id}: stands there twice")
            seen.add(item.id)
            item.check(vocabulary, needs_prompt=needs_prompt)
            candidates = [
                scored_chunk((*item.prompt, c), len(item.prompt), vocabulary, patcher, item.id) for c in item.candidates
            ]
            longest = max(len(c.chunk.patch_length) for c in candidates)
            if longest > units:
                raise UserError(f"item {item.id}: {longest} units, the context is {units}")
        except UserError as error:
            problems[item.id] = str(error)
            continue
        chunks.extend(candidates)
        kept.append(item)
    if not kept:
        reasons = "; ".join(list(problems.values())[:3])
        raise UserError(f"task {task}: no item can be scored ({len(problems)} refused: {reasons})")
    sums = score_chunks(chunks, score, vocabulary, units, rows_at_once, progress)
    result = ChoiceResult(task, float(np.mean([1 / len(i.candidates) for i in kept])), refused=problems)
    begin = 0
    for item in kept:
        end = begin + len(item.candidates)
        result.items.append(
            ItemScore(
                item.id,
                item.answer,
                tuple(float(s.sum(dtype=np.float64)) for s in sums[begin:end]),
                tuple(len(one.scored) for one in chunks[begin:end]),
                tuple(c.characters for c in item.candidates),
            )
        )
        begin = end
    return result


def score_chunks(
    chunks: Sequence[ScoredChunk],
    score: Score,
    vocabulary: Vocabulary,
    units: int,
    rows_at_once: int = 8,
    progress: Progress = lambda done, total: None,
) -> list[np.ndarray]:
    """Log-probabilities of the scored tokens of each document, many documents to a row."""
    rows, place = pack_chunks(chunks, units, vocabulary)
    scores: list[np.ndarray] = []
    for begin in range(0, len(rows), rows_at_once):
        scores.extend(score(rows[begin : begin + rows_at_once]))
        progress(len(scores), len(rows))
    return [scores[row][offset + one.scored] for one, (row, offset) in zip(chunks, place, strict=True)]
