"""Normaliser and error rates against a plain dynamic programme and hand-made cases."""

import numpy as np
import pytest

from megatron_lst.evaluation.error_rates import error_rate, normalise
from megatron_lst.evaluation.generated import auto_bleu, distinct, grade_answers, perplexity
from megatron_lst.patching.chunks import text_span
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import static_patcher
from megatron_lst.vocabulary import IGNORE, Vocabulary


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("I'm sure we won't; they've gone.", "i am sure we will not they have gone"),
        ("Mr. Smith (aside) [laughs] sold twelve hundred sheep", "mister smith sold 1200 sheep"),
        ("um, the colour grey", "the color gray"),
        ("Café naïve", "cafe naive"),
    ],
)
def test_normalise(said: str, expected: str) -> None:
    assert normalise(said) == expected
    assert normalise(expected) == expected


def slow_distance(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            )  # fmt: skip
    return int(table[-1, -1])


def test_edits_are_levenshteins() -> None:
    rng = np.random.default_rng(0)
    words = ["red", "ship", "went", "home"]
    for _ in range(50):
        a, b = ([words[i] for i in rng.integers(0, 4, rng.integers(1, 9))] for _ in range(2))
        assert error_rate([" ".join(a)], [" ".join(b)]).edits == slow_distance(a, b)


def test_error_rates_are_over_all_words_together() -> None:
    result = error_rate(["The cat sat.", "yes"], ["the cat sat", "no no"])
    assert (result.edits, result.length, result.rate) == (2, 4, 0.5)
    assert error_rate(["yes"], ["no no no"]).rate == 3.0
    assert error_rate(["abcd"], ["abxd"], "character").rate == 0.25
    assert error_rate([""], [""]).rate == 0.0
    assert error_rate(["", "yes"], ["well", "yes"]).rate == 1.0


def test_diversity_and_answers() -> None:
    assert distinct([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert auto_bleu([1, 2, 1, 2], 2) == pytest.approx(2 / 3)
    assert auto_bleu([1, 2, 3, 4], 2) == 0.0
    graded = grade_answers(["It is Paris, of course.", "Parisian", "paris"], [["Paris"]] * 3)
    assert (graded.accuracy, graded.exact) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_perplexity_of_a_uniform_judge_is_its_size() -> None:
    def judge(rows: list[Row]) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [np.where(r.labels == IGNORE, 0, -np.log(7)).astype(np.float32) for r in rows]

    vocabulary = Vocabulary(text_size=24, speech_size=9, multiple=8)
    value = perplexity(
        [text_span([4])] * 2, [text_span([5, 6]), text_span([])], judge, vocabulary, static_patcher(4), 32
    )  # type: ignore[arg-type]
    assert value == pytest.approx(7)
