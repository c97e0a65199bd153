"""The study: its corpus, budgets and statistics, and a whole study small enough for a test."""

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.study.arms import ARMS, StudyPlan
from examples.study.corpus import Corpus, chapters, passages, write_corpus
from examples.study.measure import DIRECTIONS, MODALITIES, Measures, make_items, read_held_out
from examples.study.reporting import report
from examples.study.running import run_study
from examples.study.summary import crossed_bootstrap
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import static_patcher
from megatron_lst.vocabulary import Vocabulary

TINY = StudyPlan(
    seeds=1,
    units_budget=7_700,  # 30 steps of 256 units and a rest that is too little for a step
    units=128,
    global_batch=2,
    hidden=16,
    layers=2,
    local_hidden=16,
    init_std=0.25,
    evaluations=2,
    items=4,
    final_items=8,
    documents=2,
    final_documents=3,
    prompt_words=8,
    continuation_words=4,
)
WORDS, FRAMES, DOCUMENT = 16, 6, 24
"""A language for tests: each word has one text id and six speech units of its own."""


def _document(name: str, speaker: str, rng: np.random.Generator) -> Document:
    words = rng.integers(0, WORDS, DOCUMENT)
    each = np.arange(DOCUMENT, dtype=np.int32)
    return Document(
        id=name,
        source="speech",
        speaker=speaker,
        text=" ".join(f"w{w:02d}" for w in words.tolist()),
        token_ids=(words + 3).astype(np.int32),
        speech_ids=(words[:, None] + np.arange(FRAMES) % 2).ravel().astype(np.int16),
        word_frames=np.stack([FRAMES * each, FRAMES * (each + 1)], 1),
        word_tokens=np.stack([each, each + 1], 1),
        word_chars=np.stack([4 * each, 4 * each + 3], 1),
        word_scores=np.ones(DOCUMENT, np.float32),
    )


def _sets(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    tokenizer, codec = TokenizerInfo("test", WORDS + 3, 1, 2), Codec("test", (WORDS + 1,))
    sizes = {"speech": 60, "text": 30, "held-out": 12}
    for name, count in sizes.items():
        documents = [_document(f"{name}-{i}", "ab"[i % 2], rng) for i in range(count)]
        if name == "text":
            documents = [Document(id=d.id, source="text", text=d.text, token_ids=d.token_ids) for d in documents]
            write_set(folder / name, documents, "text", tokenizer, None)
        else:
            write_set(folder / name, documents, "speech", tokenizer, codec)
    return {name: folder / name for name in sizes}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return _sets(tmp_path_factory.mktemp("sets"))


def test_passages_are_whole_verses_of_one_chapter_and_of_one_split() -> None:
    texts = {name: " ".join(verses) for name, verses, _ in chapters()}
    for split in ("train", "heldout"):
        found = dict(passages(split, 150, 0))
        of_split = {name for name, _, of in chapters() if of == split}
        for name, text in list(found.items())[:50]:
            chapter = name.rpartition("-")[0]
            assert chapter in of_split
            assert text in texts[chapter]
            assert 150 <= len(text.split()) < 260
    assert list(passages("train", 150, 0)) != list(passages("train", 150, 1))


def test_speech_that_nobody_can_speak_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="flite speaks the passages and is not installed: apt-get install flite"):
        write_corpus(Corpus(), tmp_path, 1)


def test_wrong_words_have_the_voice_of_the_right_ones(sets: dict[str, Path]) -> None:
    held_out = read_held_out(ShardSet.open(sets["held-out"]))
    assert {d.speaker for d in held_out[:4]} == {"a", "b"}
    texts = {d.id: d.token_ids.tolist() for d in held_out}
    voices = {d.id: d.speaker for d in held_out}
    for item in make_items(TINY, held_out, "T->T", static_patcher(1)):
        wrong = item.candidates[1 - item.answer].ids.tolist()
        own = item.id.partition("@")[0]
        owners = [name for name, ids in texts.items() if any(ids[i : i + 4] == wrong for i in range(DOCUMENT))]
        assert owners == [name for name in owners if name != own]
        assert {voices[name] for name in owners} == {voices[own]}


def test_bits_are_those_of_a_model_that_guesses(sets: dict[str, Path]) -> None:
    """All of 8 labels alike are 3 bits a token: 25 tokens a second, one token a word."""
    held_out = read_held_out(ShardSet.open(sets["held-out"]))
    vocabulary = Vocabulary(text_size=WORDS + 3, speech_size=WORDS + 1)
    for patch in (1, 4):
        measures = Measures(TINY, held_out, static_patcher(patch), vocabulary)

        def guess(rows: list[Row]) -> list[np.ndarray]:
            return [np.full(len(row.tokens), -np.log(8), np.float32) for row in rows]

        found = measures(guess, final=True)
        assert found["speech"] == pytest.approx([75.0] * 3)
        assert found["text"] == pytest.approx([3.0] * 3)
        assert all(right == 0.5 for d in DIRECTIONS for right in found[d]["right"])


def test_seeds_widen_the_interval() -> None:
    items = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    same = crossed_bootstrap(np.stack([items] * 3))
    apart = crossed_bootstrap(np.stack([items * 0, items, items * 0 + 1]))
    assert same.low < items.mean() < same.high
    assert apart.high - apart.low > 2 * (same.high - same.low)


def test_a_budget_below_the_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give 512 or more"):
        run_study(dataclasses.replace(TINY, units_budget=511), tmp_path, {}, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def runs(folder: Path, sets: dict[str, Path]) -> dict[str, Any]:
    return {run["arm"]: run for run in run_study(TINY, folder, sets, 1)}


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
        for modality in MODALITIES:
            assert [len(point[modality]) for point in run["curve"]] == [2, 2, 3]
            assert np.mean(run["curve"][-1][modality][:2]) < np.mean(run["curve"][0][modality])


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_stopped_study_goes_on_and_reports(folder: Path, sets: dict[str, Path], runs: dict[str, Any]) -> None:
    results = folder / "results"
    untouched = {arm: (results / f"{arm}-0.json").stat().st_mtime_ns for arm in ARMS if arm != "curriculum"}
    (results / "curriculum-0.json").unlink()
    again = {run["arm"]: run for run in run_study(TINY, folder, sets, 1)}
    assert {arm: (results / f"{arm}-0.json").stat().st_mtime_ns for arm in untouched} == untouched
    assert again["curriculum"]["curve"] == runs["curriculum"]["curve"]
    page = report(TINY, list(again.values()), folder)
    assert "| static minus base |" in page and "not whether the paper" in page
    assert json.loads((folder / "study.json").read_text())["arms"]["base"]["S->S right"]["low"] >= 0
    assert (folder / "curves.png").stat().st_size > 10_000


@pytest.mark.multiprocess
def test_another_study_in_the_folder_is_refused(folder: Path, sets: dict[str, Path], runs: dict[str, Any]) -> None:
    before = set(multiprocessing.active_children())  # other tests keep ranks warm in this process
    with pytest.raises(UserError, match=r"holds another study: lr \(0\.003 there, 0\.1 now\)"):
        run_study(dataclasses.replace(TINY, lr=0.1), folder, sets, 1)
    assert set(multiprocessing.active_children()) <= before
