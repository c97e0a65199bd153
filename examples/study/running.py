"""Trains and measures every (arm, seed), a few at a time in processes of their own; what is finished is not redone."""

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from examples.study.arms import StudyPlan, arm_config, plain, tasks
from megatron_lst.config.schema import Config
from megatron_lst.errors import TrainingFault, UserError
from megatron_lst.files import write_json
from megatron_lst.flops import parameters, row_flops
from megatron_lst.patching.row import Row
from megatron_lst.progress import Progress


@dataclass(frozen=True)
class Task:
    """One run: an arm with a seed."""

    plan: StudyPlan
    arm: str
    seed: int
    steps: int
    sets: dict[str, Path]
    result: Path

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"


def run_study(plan: StudyPlan, folder: Path, sets: dict[str, Path], jobs: int) -> list[dict[str, Any]]:
    """Run what is not there yet on the shard sets of `corpus.write_corpus`. Returns the results of all runs.

    Results lie in `folder/results/ARM-SEED.json`, written when a run has ended; a study that was stopped goes on with
    the runs that have none.

    Raises:
        UserError: the folder holds another study.
        TrainingFault: a run's loss is not finite.
    """
    settle(plan, folder)
    todo = [
        Task(plan, arm, seed, steps, sets, folder / "results" / f"{arm}-{seed}.json")
        for arm, seed, steps in tasks(plan, sets)
    ]
    left = [task for task in todo if not task.result.is_file()]
    print(f"{len(todo)} runs, {len(todo) - len(left)} done before", flush=True)
    if left:
        _run_all(left, jobs)
    return [json.loads(task.result.read_text()) for task in todo]


def settle(plan: StudyPlan, folder: Path) -> None:
    """Make the folder, or find that it is this study's; more seeds are welcome, all else must be the same.

    Raises:
        UserError: a plan that cannot be, or the folder holds another study.
    """
    plan.check()
    path = folder / "plan.json"
    mine = json.loads(json.dumps(plain(plan)))
    if path.is_file():
        held = json.loads(path.read_text())
        other = sorted(k for k in {*held, *mine} - {"seeds"} if held.get(k) != mine.get(k))
        if other:
            changes = ", ".join(f"{k} ({held.get(k)} there, {mine.get(k)} now)" for k in other)
            raise UserError(f"{folder} holds another study: {changes}. Give another --out, or remove it.")
    (folder / "results").mkdir(parents=True, exist_ok=True)
    write_json(path, mine)


def _run_all(left: Sequence[Task], jobs: int) -> None:
    context = multiprocessing.get_context("spawn")
    reports: multiprocessing.Queue[Any] = context.Queue()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(jobs, len(left)), context, initializer=_begin_worker, initargs=(reports,)) as pool:
        futures = [pool.submit(_run_in_worker, task) for task in left]
        workers = set(multiprocessing.active_children()) - others
        try:
            _watch(futures, reports, left)
        except BrokenProcessPool as error:
            raise TrainingFault(
                "study: a run's process was killed (out of memory?); the same command goes on with the runs that "
                "are left, with fewer at a time under --jobs"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            raise


def _watch(futures: Sequence[Future[None]], reports: Any, left: Sequence[Task]) -> None:
    """Show progress of all runs together until they are done; the first failure is raised at once."""
    steps = {task.name: 0 for task in left}
    with contextlib.ExitStack() as stack:
        progress: Progress | None = None
        while not all(future.done() for future in futures):
            for future in futures:
                if future.done():
                    future.result()
            with contextlib.suppress(Empty):
                name, step, wanted, text = reports.get(timeout=0.5)
                steps[name], done = step, sum(steps.values())
                if progress is None:  # the time before the first step was spent on imports
                    total = sum(task.steps for task in left)
                    progress = stack.enter_context(Progress("study", total, done))
                progress.update(done, f"{name}: step {step}/{wanted}, {text}")
    for future in futures:
        future.result()


_reports: Any = None  # of a worker: where its runs tell how far they are


def _begin_worker(reports: Any) -> None:
    """Runs share the machine by processes, not by threads; other packages' warnings are as quiet as in `lst`."""
    global _reports
    _reports = reports
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _end_with(parent: Any) -> None:
    """A worker does not outlive the study, not even one that was killed."""
    parent.join()
    os._exit(1)


def _run_in_worker(task: Task) -> None:
    run_task(task, lambda *report: _reports.put((task.name, *report)))


def run_task(task: Task, report: Callable[[int, int, str], None]) -> None:
    """Train one arm with one seed from its first step to its last, measuring on the way, and write its result.

    Args:
        report: called after each step with (step, steps, what a person may want to read).

    Raises:
        TrainingFault: the loss or its gradient is not finite.
    """
    from examples.study.measure import Measures, read_held_out
    from megatron_lst.data import RowStream
    from megatron_lst.documents.shards import ShardSet
    from megatron_lst.engines import build_engine
    from megatron_lst.patching.strategies import evaluation_patcher
    from megatron_lst.training.schedule import learning_rate

    plan = task.plan
    config = arm_config(plan, task.arm, task.seed, task.sets, task.steps)
    patcher = evaluation_patcher(config.model, config.patching)
    held_out = read_held_out(ShardSet.open(task.sets["held-out"]))
    measures = Measures(plan, held_out, patcher, config.vocabulary)
    points = {round(task.steps * i / plan.evaluations) for i in range(1, plan.evaluations + 1)}
    spent = _Spent()
    began = time.monotonic()
    engine = build_engine(config)
    try:
        curve = [{**asdict(spent), **measures(engine.score, final=False)}]
        for step, batch in zip(range(1, task.steps + 1), RowStream(config, 0, 1), strict=False):
            result = engine.step(batch.rows, learning_rate(step, config.training))
            if result.skipped:
                raise TrainingFault(f"study: {task.name}, step {step}: the loss or its gradient is not finite")
            spent = spent.after(batch.rows, config)
            if step in points:
                curve.append({**asdict(spent), **measures(engine.score, final=step == task.steps)})
            report(step, task.steps, f"loss {result.loss:.3f}")
    finally:
        engine.close()
    write_json(
        task.result,
        {
            "arm": task.arm,
            "seed": task.seed,
            "steps": task.steps,
            "parameters": parameters(config),
            "seconds": time.monotonic() - began,
            "curve": curve,
        },
    )


@dataclass(frozen=True)
class _Spent:
    """What a run has seen.

    Attributes:
        units: rows times U, the budget's unit; a row's last units may be padding.
        filled: units that are not padding.
        tokens, flops: without padding.
    """

    step: int = 0
    units: int = 0
    filled: int = 0
    tokens: int = 0
    flops: float = 0.0

    def after(self, rows: Sequence[Row], config: Config) -> "_Spent":
        """With one more step."""
        padding = sum(int((row.tokens == config.vocabulary.pad).sum()) for row in rows)  # a PAD unit is one token
        units, tokens = sum(row.units for row in rows), sum(len(row.tokens) for row in rows)
        return _Spent(
            self.step + 1,
            self.units + units,
            self.filled + units - padding,
            self.tokens + tokens - padding,
            self.flops + sum(row_flops(config, row) for row in rows),
        )
