"""The toy study: its language, its budgets, its statistics, and a whole study small enough for a test."""

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.study.arms import ARMS, StudyPlan
from examples.study.measure import DIRECTIONS, ceiling, make_items, read_held_out
from examples.study.reporting import report
from examples.study.running import run_study
from examples.study.summary import crossed_bootstrap
from examples.study.world import Corpus, World, write_corpus
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError
from megatron_lst.patching.strategies import static_patcher

TINY = StudyPlan(
    seeds=1,
    units_budget=7_700,  # 30 steps of 256 units and a rest that is too little for a step
    global_batch=2,
    hidden=16,
    evaluations=2,
    items=4,
    final_items=8,
    corpus=Corpus(speech=60, text=30, held_out=12),
)


def test_words_are_spoken_as_their_pronunciations_say() -> None:
    world = World(noise=0.0, gap=0.5)
    words = np.arange(world.words)
    units, spans = world.speak(np.random.default_rng(0), words)
    for word, (begin, end) in zip(words, spans.tolist(), strict=True):
        heard = units[begin:end] // 2
        assert heard[np.append(True, np.diff(heard) != 0)].tolist() == _without_repeats(world.pronunciations[word])
        assert world.silence not in units[begin:end]
    inside = np.zeros(len(units), bool)
    for begin, end in spans.tolist():
        inside[begin:end] = True
    assert (units[~inside] == world.silence).all() and (~inside).any()


def _without_repeats(phones: np.ndarray) -> list[int]:
    return [int(p) for i, p in enumerate(phones) if i == 0 or p != phones[i - 1]]


def test_no_two_words_sound_alike() -> None:
    assert len(np.unique(World().pronunciations, axis=0)) == World().words


def test_probabilities_of_all_texts_sum_to_one() -> None:
    world = World(topics=2, words_per_topic=2)
    texts = np.stack(np.meshgrid(*[np.arange(4)] * 4), -1).reshape(-1, 4)
    assert sum(np.exp(world.log_probability(text)) for text in texts) == pytest.approx(1.0)


def test_continuations_follow_from_prompts_and_not_without_topics(tmp_path: Path) -> None:
    def known(name: str, world: World) -> float:
        sets = write_corpus(Corpus(speech=1, text=1, held_out=150, world=world), tmp_path / name)
        items = make_items(StudyPlan(), read_held_out(ShardSet.open(sets["held-out"])), "T->T", static_patcher(1))
        assert len(items) == 300
        return ceiling(World(), items)

    assert known("topics", World()) > 0.9
    assert 0.4 < known("none", World(off_topic=1.0)) < 0.6


def test_seeds_widen_the_interval() -> None:
    items = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    same = crossed_bootstrap(np.stack([items] * 3))
    apart = crossed_bootstrap(np.stack([items * 0, items, items * 0 + 1]))
    assert same.low < items.mean() < same.high
    assert apart.high - apart.low > 2 * (same.high - same.low)


def test_a_budget_below_the_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give 512 or more"):
        run_study(dataclasses.replace(TINY, units_budget=511), tmp_path, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Any]:
    return {run["arm"]: run for run in run_study(TINY, folder, 1)}


@pytest.mark.multiprocess
def test_budgets_are_equal(runs: dict[str, Any]) -> None:
    assert tuple(runs) == ARMS
    spent = {arm: run["curve"][-1] for arm, run in runs.items()}
    assert {spent[arm]["units"] for arm in ("base", "static", "curriculum")} == {30 * 256}
    for point in spent.values():
        assert 0.97 * point["units"] < point["filled"] <= point["units"]
    assert spent["base-flops"]["flops"] == pytest.approx(spent["static"]["flops"], rel=0.02)
    # What would be wrong if the arms were not what they are called:
    assert spent["base"]["tokens"] == spent["base"]["filled"] < spent["static"]["tokens"]
    assert spent["base"]["flops"] < 0.9 * spent["static"]["flops"]
    assert spent["curriculum"]["tokens"] != spent["static"]["tokens"]


@pytest.mark.multiprocess
def test_every_point_has_every_measure(runs: dict[str, Any]) -> None:
    for run in runs.values():
        assert [point["step"] for point in run["curve"]] == [0, run["steps"] // 2, run["steps"]]
        for point in run["curve"]:
            count = 8 if point["step"] == run["steps"] else 4
            for direction in DIRECTIONS:
                assert len(point[direction]["right"]) == len(point[direction]["margin"]) == count
                for right, margin in zip(point[direction]["right"], point[direction]["margin"], strict=True):
                    assert right == (0.5 if margin == 0 else float(margin > 0))
        assert run["curve"][-1]["bits_per_second"] < run["curve"][0]["bits_per_second"]


@pytest.mark.multiprocess
def test_a_stopped_study_goes_on_and_reports(folder: Path, runs: dict[str, Any]) -> None:
    results = folder / "results"
    untouched = {arm: (results / f"{arm}-0.json").stat().st_mtime_ns for arm in ARMS if arm != "curriculum"}
    (results / "curriculum-0.json").unlink()
    again = {run["arm"]: run for run in run_study(TINY, folder, 1)}
    assert {arm: (results / f"{arm}-0.json").stat().st_mtime_ns for arm in untouched} == untouched
    assert again["curriculum"]["curve"] == runs["curriculum"]["curve"]
    page = report(TINY, list(again.values()), folder)
    assert "| static minus base |" in page and "cannot show" in page
    assert json.loads((folder / "study.json").read_text())["arms"]["base"]["S->S right"]["low"] >= 0
    assert (folder / "curves.png").stat().st_size > 10_000


@pytest.mark.multiprocess
def test_another_study_in_the_folder_is_refused(folder: Path, runs: dict[str, Any]) -> None:
    before = set(multiprocessing.active_children())  # other tests keep ranks warm in this process
    with pytest.raises(UserError, match=r"holds another study: lr \(0\.004 there, 0\.1 now\)"):
        run_study(dataclasses.replace(TINY, lr=0.1), folder, 1)
    assert set(multiprocessing.active_children()) <= before
