"""Tasks of lm-eval for a model that only scores rows, such as one in training.

Requests are made once and become documents; whoever holds the model scores them, again and again, on any number of
ranks; lm-eval then counts the answers.  So only one process needs lm-eval and the data sets.

    tasks = TextTasks(["arc_easy"], TextRequests(encode, vocabulary, units))
    measures = tasks.grade(score_chunks(tasks.chunks, score, vocabulary, units))
"""

import contextlib
import io
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.evaluation.harness import TextRequests, require_harness
from megatron_lst.evaluation.items import ScoredChunk

_SCORED = ("multiple_choice", "loglikelihood_rolling")
"""Kinds of task that log-probabilities decide. `loglikelihood` asks for the greedy answer as well."""


class TextTasks:
    """The requests of some tasks, and their grading.

    Attributes:
        chunks: documents to score; `grade` takes their scores in this order.

    Args:
        names: tasks or groups of lm-eval.
        requests: makes documents of them.
        folder: of task YAML files besides lm-eval's own.
        shots: examples before each question; None: as the task says.
        limit: first documents of each task; None: all.

    Raises:
        UserError: lm_eval is not installed, does not know a task or cannot get its data set; a task needs more than
            log-probabilities; a request does not fit the context.
    """

    def __init__(
        self,
        names: Sequence[str],
        requests: TextRequests,
        folder: str | None = None,
        shots: int | None = None,
        limit: int | None = None,
    ) -> None:
        self._names, self._shots, self._limit = list(names), shots, limit
        require_harness()
        with _quietly():
            self._manager = task_manager(self._names, folder)
        self._pairs: dict[tuple[str, str], int] = {}
        self._texts: dict[str, tuple[int, int]] = {}
        self.chunks: list[ScoredChunk] = []
        results, asked = self._run(_Answers())
        _refuse_others(results)
        for pair in asked.pairs:
            self._pairs[pair] = len(self.chunks)
            self.chunks.append(requests.pair(f"{pair[0][-40:]!r}, {pair[1]!r}", *pair))
        for text in asked.texts:
            windows = requests.whole(repr(text[:40]), text)
            self._texts[text] = len(self.chunks), len(self.chunks) + len(windows)
            self.chunks += windows
        if not self.chunks:
            raise UserError(f"tasks {', '.join(names)}: there is nothing to score")

    def grade(self, scores: Sequence[np.ndarray]) -> dict[str, float]:
        """What lm-eval makes of the log-probabilities of `chunks`: `TASK_METRIC` -> value."""
        sums = [float(s.sum(dtype=np.float64)) for s in scores]
        answers = _Answers(
            {pair: (sums[at], False) for pair, at in self._pairs.items()},
            {text: sum(sums[begin:end]) for text, (begin, end) in self._texts.items()},
        )
        results, _ = self._run(answers)
        return _measures(results, self._names)

    def _run(self, answers: "_Answers") -> tuple[dict[str, Any], "_Answers"]:
        import lm_eval

        with _quietly(), _own_random_state():
            try:
                found = lm_eval.simple_evaluate(
                    model=answers.model(), tasks=self._names, num_fewshot=self._shots, limit=self._limit,
                    task_manager=self._manager, bootstrap_iters=0, log_samples=False, torch_random_seed=None,
                )  # fmt: skip
            except (ConnectionError, FileNotFoundError) as error:
                raise UserError(f"lm-eval cannot get the documents of {', '.join(self._names)}: {error}") from None
        assert found is not None, "lm-eval gives its results to rank 0"
        return found, answers


def task_manager(names: Sequence[str], folder: str | None = None) -> Any:
    """lm-eval's `TaskManager` that knows some tasks. lm_eval must be there.

    Args:
        folder: of task YAML files besides lm-eval's own, which take seconds to index: they are left out where the
            folder has all names.

    Raises:
        UserError: lm-eval has no task or group of a name.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return own
    manager = TaskManager(include_path=folder)
    if unknown := [name for name in names if not manager.match_tasks([name]) and not Path(name).exists()]:
        raise UserError(f"task {unknown[0]!r}: lm-eval does not know it; `lm_eval ls tasks` lists what it knows")
    return manager


class _Answers:
    """Answers that are known; where none are, it notes what is asked, and says anything."""

    def __init__(
        self,
        pairs: dict[tuple[str, str], tuple[float, bool]] | None = None,
        texts: dict[str, float] | None = None,
    ) -> None:
        self.pairs, self.texts, self._asking = pairs or {}, texts or {}, pairs is None

    def model(self) -> Any:
        """As an `lm_eval.api.model.LM`."""
        from lm_eval.api.model import LM

        mine = self

        class Model(LM):  # type: ignore[misc]
            def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
                return [mine.answer(mine.pairs, request.args, (0.0, False)) for request in requests]

            def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
                return [mine.answer(mine.texts, request.args[0], 0.0) for request in requests]

            def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
                return ["" for _ in requests]  # such tasks are refused

        return Model()

    def answer(self, known: dict[Any, Any], key: Any, anything: Any) -> Any:
        assert self._asking or key in known, f"lm-eval asks {key!r}, which it did not ask before"
        return known.setdefault(key, anything)


def _refuse_others(results: dict[str, Any]) -> None:
    """Tasks that log-probabilities do not decide."""
    for name, config in results["configs"].items():
        kind = config.get("output_type")
        metrics = [metric.get("metric") for metric in config.get("metric_list") or ()]
        what = f"is of the kind {kind}" if kind not in _SCORED else "has the metric exact_match"
        if kind not in _SCORED or "exact_match" in metrics:
            raise UserError(
                f"task {name!r} {what}, which needs more than log-probabilities: run `lst eval harness` on an export"
            )


def _measures(results: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The figures of each task that was named; of the members of a group that has none of its own."""
    found: dict[str, float] = {}
    for name in names:
        members = results.get("group_subtasks", {}).get(name) or []
        own = _figures(name, results["results"].get(name, {}))
        for member in () if own else members:
            own |= _figures(member, results["results"].get(member, {}))
        found |= own
    return found


def _figures(task: str, results: dict[str, Any]) -> dict[str, float]:
    found = {}
    for key, value in results.items():
        metric, _, choice = key.partition(",")  # acc,none: `none` is the filter
        if isinstance(value, int | float) and choice and not metric.endswith("_stderr"):
            found[f"{task}_{metric}" + ("" if choice == "none" else f"_{choice}")] = float(value)
    return found


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """lm-eval seeds the global generators; those of a training run go on as if it had not."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without lm-eval's bars and notes, for it runs again and again."""
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.getLogger("lm_eval").setLevel(level)
