"""Tasks of lm-eval on something that only scores rows: the same figures as lm-eval gets from the model itself."""

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import score_chunks
from megatron_lst.evaluation.harness import TextRequests, make_harness_model
from megatron_lst.evaluation.text_tasks import TextTasks
from megatron_lst.inference import load_export
from tests.evaluation.test_harness import V, decode, encode, folders

__all__ = ["folders"]
REQUESTS = TextRequests(encode, V, 32)


def test_figures_are_those_of_the_model_itself_and_follow_the_scores(folders: tuple[Path, Path]) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    export, folder = folders
    random.seed(5)
    np.random.seed(5)
    expected_draws = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    tasks = TextTasks(["choice", "whole"], REQUESTS, str(folder))
    scores = score_chunks(tasks.chunks, load_export(export).model().score, V, 32)
    found = tasks.grade(scores)
    assert (random.random(), np.random.random()) == expected_draws  # lm-eval seeds both
    theirs = lm_eval.simple_evaluate(
        model=make_harness_model(export, encode, decode, units=32),
        tasks=["choice", "whole"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert found == {
        "choice_acc": theirs["choice"]["acc,none"],
        "whole_word_perplexity": pytest.approx(theirs["whole"]["word_perplexity,none"], rel=1e-6),
    }
    # Of the pairs, right and wrong take turns: the better the right ones, the more are right.
    pairs = [one for one in range(len(scores)) if tasks.chunks[one].chunk.document_id.count(",")]
    for right in (0, 1):
        told = [np.full_like(s, -1.0 if i % 2 == right else -9.0) if i in pairs else s for i, s in enumerate(scores)]
        assert tasks.grade(told)["choice_acc"] == float(right == 0)


def test_a_limit_takes_the_first_documents(folders: tuple[Path, Path]) -> None:
    assert len(TextTasks(["choice"], REQUESTS, str(folders[1]), limit=2).chunks) == 4


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("last_word", "'last_word' is of the kind loglikelihood, which needs more than log-probabilities"),
        ("answer", "'answer' is of the kind generate_until"),
        ("hidden", "lm-eval cannot get the documents of hidden"),
    ],
)
def test_other_tasks_are_refused(folders: tuple[Path, Path], task: str, message: str) -> None:
    text = (folders[1] / "choice.yaml").read_text()
    (folders[1] / "hidden.yaml").write_text(text.replace("choice", "hidden", 1).replace("stories.jsonl", "none.jsonl"))
    with pytest.raises(UserError, match=message):
        TextTasks([task], REQUESTS, str(folders[1]))


def test_a_continuation_that_does_not_fit_is_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="request .*a continuation of 2 pieces, the context is 2"):
        TextTasks(["choice"], TextRequests(encode, V, 2), str(folders[1]))
