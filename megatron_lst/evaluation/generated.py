"""What generated text and speech are like: perplexity under a judge, diversity, answers to questions."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.evaluation.choice import Score, score_chunks
from megatron_lst.evaluation.error_rates import normalise
from megatron_lst.evaluation.items import scored_chunk
from megatron_lst.patching.chunks import Span
from megatron_lst.patching.strategies import Patcher
from megatron_lst.vocabulary import Vocabulary


def perplexity(
    prompts: Sequence[Span],
    responses: Sequence[Span],
    judge: Score,
    vocabulary: Vocabulary,
    patcher: Patcher,
    units: int,
) -> float:
    """exp of the judge's mean nats per response token, given the prompt: generative perplexity where the judge is a
    stronger model (transcribe speech first, to be judged as text), self-perplexity where it is the model itself."""
    chunks = [
        scored_chunk((p, r), 1, vocabulary, patcher, str(i))
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
        if len(r.ids)
    ]
    scores = score_chunks(chunks, judge, vocabulary, units)
    return math.exp(-sum(float(s.sum(dtype=np.float64)) for s in scores) / sum(len(s) for s in scores))


def distinct(sequences: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """Distinct n-grams / n-grams, over all sequences together; NaN where there are none."""
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def auto_bleu(sequence: Sequence[Hashable], n: int = 2) -> float:
    """Share of n-grams that stand more than once in their own sequence: repetition; 0 is none."""
    grams = [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
    if not grams:
        return 0.0
    counts: dict[tuple[Hashable, ...], int] = {}
    for gram in grams:
        counts[gram] = counts.get(gram, 0) + 1
    return sum(counts[g] > 1 for g in grams) / len(grams)


@dataclass(frozen=True)
class Answers:
    """Spoken question answering.

    Attributes:
        accuracy: share of responses that hold an accepted answer as whole words.
        exact: share that are one.
    """

    accuracy: float
    exact: float
    count: int


def grade_answers(responses: Sequence[str], accepted: Sequence[Sequence[str]]) -> Answers:
    """Compare responses (speech transcribed) with the accepted answers, both normalised."""
    held = exact = 0
    for response, answers in zip(responses, accepted, strict=True):
        said = normalise(response)
        wanted = [normalise(a) for a in answers if normalise(a)]
        held += any(f" {w} " in f" {said} " for w in wanted)
        exact += said in wanted
    return Answers(held / len(responses), exact / len(responses), len(responses))
