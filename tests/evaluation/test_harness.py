"""lm-eval itself, offline: tasks of each kind from local files run on a tiny export, and agree with our scorer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("lm_eval")

from typer.testing import CliRunner

from lst_prep.tokenizer import load_tokenizer
from megatron_lst.cli.evaluate import eval_app
from megatron_lst.config.schema import Config, ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import run_choice
from megatron_lst.evaluation.harness import generation_settings, make_harness_model, stop_strings
from megatron_lst.evaluation.items import ChoiceItem
from megatron_lst.inference import GenerationSettings, load_export, write_export
from megatron_lst.patching.chunks import text_span
from megatron_lst.patching.strategies import static_patcher
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary
from tests.support.tokenizers import character_tokenizer

NAMES = "abcdefghijklmnopqrst. "
V = Vocabulary(text_size=32, speech_size=9, multiple=8)
CONFIG = Config(
    vocabulary=V,
    model=ModelConfig(
        hidden=16, layers=1, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1,
        init_std=0.4,
    ),
)  # fmt: skip
STORIES = [
    {"prompt": "ab cd", "right": "ef", "wrong": "tt"},
    {"prompt": "b a", "right": "d", "wrong": "rs t"},
    {"prompt": "qq rr ss", "right": "t a", "wrong": "m"},
]
YAML = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{prompt}}"
        doc_to_choice: "{{[right, wrong]}}"
        doc_to_target: 0
        metric_list: [{metric: acc}]
    """,
    "last_word": """
        output_type: loglikelihood
        doc_to_text: "{{prompt}}"
        doc_to_target: " {{right}}"
        metric_list: [{metric: perplexity}, {metric: acc}]
    """,
    "whole": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{prompt}} {{right}}"
        metric_list: [{metric: word_perplexity}]
    """,
    "answer": """
        output_type: generate_until
        doc_to_text: "{{prompt}}"
        doc_to_target: "{{right}}"
        generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
        metric_list: [{metric: exact_match}]
    """,
}


def encode(said: str, continuing: bool) -> list[int]:
    return [3 + NAMES.index(c) for c in said.replace(" ", "")]


def decode(ids: list[int]) -> str:
    return "".join(NAMES[i - 3] if 3 <= i < 3 + len(NAMES) else "?" for i in ids)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(export, folder of tasks), with the datasets library kept offline and its cache in tmp_path."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(s) + "\n" for s in STORIES))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, body in YAML.items():
        lines = "\n".join(line.strip() for line in body.strip().splitlines())
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'stories.jsonl'}}}}}"
        (tasks / f"{name}.yaml").write_text(f"task: {name}\n{data}\ntest_split: test\n{lines}\n")
    oracle = ReferenceModel(CONFIG.model, V, seed=2)
    file = character_tokenizer(tmp_path / "tokenizer.json", NAMES.replace(" ", ""))
    metadata = {"tokenizer": {"name": str(file), "fingerprint": load_tokenizer(str(file)).info.fingerprint}}
    return write_export(tmp_path / "export", oracle.state_dict(), CONFIG, metadata), tasks


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """What the model answered to each document of a task, in order."""
    samples = sorted(results["samples"][task], key=lambda s: s["doc_id"])
    return [[r[0] for r in s["resps"]] for s in samples]


def test_every_kind_of_task_runs_and_agrees_with_our_scorer(folders: tuple[Path, Path]) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    export, tasks = folders
    results = lm_eval.simple_evaluate(
        model=make_harness_model(export, encode, decode, units=32),
        tasks=list(YAML),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    model = load_export(export).model()
    items = [
        ChoiceItem(
            str(i),
            (text_span(encode(s["prompt"], False)),),
            tuple(text_span(encode(s[k], True)) for k in ("right", "wrong")),
            0,
        )
        for i, s in enumerate(STORIES)
    ]
    ours = run_choice("stories", items, model.score, V, static_patcher(4), 32)
    for item, theirs in zip(ours.items, answers(results, "choice"), strict=True):
        np.testing.assert_allclose([float(r[0]) for r in theirs], item.sums, rtol=1e-6)
    credit = np.mean([item.credit("sum") for item in ours.items])
    assert results["results"]["choice"]["acc,none"] == pytest.approx(credit)
    rights = [item.sums[0] for item in ours.items]
    np.testing.assert_allclose([float(r[0][0]) for r in answers(results, "last_word")], rights, rtol=1e-6)
    assert results["results"]["last_word"]["perplexity,none"] == pytest.approx(np.exp(-np.mean(rights)), rel=1e-6)
    assert results["results"]["whole"]["word_perplexity,none"] > 1
    said = [r[0] for r in answers(results, "answer")]
    assert all(isinstance(s, str) and "." not in s and len(s) <= 6 for s in said)
    assert any(said)


def test_the_command_writes_results(folders: tuple[Path, Path]) -> None:
    export, tasks = folders
    out = export.parent / "results"
    command = [
        "harness",
        str(export),
        "--task",
        "choice",
        "--tasks-from",
        str(tasks),
        "--out",
        str(out),
        "--units",
        "32",
    ]
    done = CliRunner().invoke(eval_app, command)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((out / "lm_eval.json").read_text())
    assert set(found["results"]) == {"choice"}
    assert "choice" in done.output


def test_a_task_that_is_not_known_is_the_users_mistake(folders: tuple[Path, Path]) -> None:
    command = ["harness", str(folders[0]), "--task", "choise", "--tasks-from", str(folders[1])]
    done = CliRunner().invoke(eval_app, command)
    assert isinstance(done.exception, UserError)
    assert "'choise': lm-eval does not know it" in str(done.exception)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"until": None, "top_p": None, "temperature": None, "do_sample": None, "top_k": None},
        {"until": ["."], "do_sample": False, "temperature": 0.7, "num_beams": 1, "repetition_penalty": 1.0},
        {"do_sample": True, "temperature": 0.0},
        {"temperature": 0},
        {"length_penalty": 1.0, "no_repeat_ngram_size": 0, "early_stopping": False, "use_cache": True, "top_k": -1},
        {"max_new_tokens": 256},
        {"max_gen_toks": 256, "max_new_tokens": 99, "max_tokens": None},
    ],
)
def test_neutral_options_are_the_greedy_ones(options: dict[str, Any]) -> None:
    assert generation_settings(options, 4096) == GenerationSettings(max_tokens=256, modality="text", context=4096)


def test_options_that_ask_for_something_are_taken() -> None:
    settings = generation_settings({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 7}, 4096)
    assert (settings.temperature, settings.top_p, settings.top_k, settings.max_tokens) == (0.7, 0.9, 5, 7)
    assert generation_settings({"do_sample": True}, 4096).temperature == 1.0
    assert generation_settings({"max_gen_toks": 9999}, 64).max_tokens == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 10}, "num_beams=10"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"typical_p": 0.5, "num_beams": 1}, "typical_p=0.5"),
        ({"max_length": 5}, "max_length=5"),
        ({"top_p": 0.0}, "top_p=0.0: expected"),
        ({"temperature": float("nan")}, "temperature=nan: expected"),
        ({"temperature": "warm"}, "warm"),
        ({"max_new_tokens": 0}, "max_tokens=0: expected"),
    ],
)
def test_options_that_are_not_there_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generation_settings(options, 4096)


def test_stop_strings_of_every_spelling() -> None:
    assert stop_strings({"until": None}) == stop_strings({}) == stop_strings({"until": []}) == []
    assert stop_strings({"until": "."}) == stop_strings({"until": [".", ""]}) == ["."]
    for wrong in (3, [3], {"a": 1}):
        with pytest.raises(UserError, match="until="):
            stop_strings({"until": wrong})


class _Loader(yaml.SafeLoader):
    """Reads task files without running the functions that they name."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)

BEAMS = {"code_x_glue/code-text/_default_template_yaml": "num_beams=10"}


def stock_options() -> dict[str, dict[str, Any]]:
    """File of each stock task of the installed lm-eval -> its generation options."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    found = {}
    for path in sorted(root.rglob("*y*ml")):
        if path.is_file() and "generation_kwargs" in (text := path.read_text(errors="replace")):
            options = yaml.load(text, _Loader).get("generation_kwargs")
            if isinstance(options, dict):
                found[str(path.relative_to(root))] = options
    return found


def test_stock_tasks_parse_but_for_those_that_are_listed() -> None:
    """Every generating task of the installed lm-eval; one asks for beams, which this loop does not have."""
    tasks = stock_options()
    assert len(tasks) > 300
    refused = {}
    for name, options in tasks.items():
        stop_strings(options)
        try:
            generation_settings(options, 4096)
        except UserError as error:
            refused[name] = str(error).rpartition(": ")[2]
    assert refused == BEAMS
