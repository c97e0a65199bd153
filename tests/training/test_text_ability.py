"""A run that begins with a language model watches its text: perplexity and a task of lm-eval, before, during and after
training, beside the language model's own."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

from lst_prep.tokenizer import load_tokenizer
from megatron_lst.config.load import load_config, to_plain
from megatron_lst.config.schema import Config
from megatron_lst.documents.schema import Document
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.inference import write_export
from megatron_lst.inference.warm_start import warm_start
from megatron_lst.reference import ReferenceModel
from megatron_lst.training.metrics import read_metrics
from megatron_lst.training.report import ability_rows, write_report
from megatron_lst.training.trainer import train
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TEXT
from tests.support.checkpoints import TINY, fitted, saved
from tests.support.ranks import RankPool
from tests.support.tokenizers import character_tokenizer
from tests.training.tiny import write_run

LETTERS = "".join(chr(0x4E00 + i) for i in range(TEXT - 3))


def sampled(model: Any, count: int, length: int) -> np.ndarray:
    """What the language model itself says, without its special ids: no model foretells it better. [count, length]"""
    torch.manual_seed(1)
    ids = torch.full((count, 1), 1)
    with torch.no_grad():
        for _ in range(length):
            scores = model(ids).logits[:, -1]
            scores[:, :3] = -torch.inf
            ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1)], 1)
    return ids[:, 1:].numpy().astype(np.int32)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """(folder of a configuration, the original): shards, checkpoint, task, and an export to start from."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    theirs = saved(tmp_path / "original", vocab_size=TEXT, hidden_size=32, initializer_range=0.5)
    file = character_tokenizer(tmp_path / "tokenizer.json", LETTERS)
    tokenizer = replace(load_tokenizer(str(file)).info, size=TEXT, bos=1, eos=2)
    said = sampled(theirs, 60, 24)
    texts = ["".join(LETTERS[i - 3] for i in ids) for ids in said]
    documents = [Document(id=f"t{i}", source="s", text=t, token_ids=ids, license="CC0")
                 for i, (t, ids) in enumerate(zip(texts, said, strict=True))]  # fmt: skip
    sets = tmp_path / "sets"
    write_set(sets / "speech", SPEECH_DOCUMENTS, "speech", tokenizer, CODEBOOK)
    write_set(sets / "text", documents[:40], "text", tokenizer)
    write_set(sets / "held", documents[40:], "text", tokenizer)
    items = [{"context": a[:12], "choices": [a[12:], b[12:]], "answer": 0}
             for a, b in zip(texts[40:], [*texts[41:], texts[40]], strict=True)]  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "goes.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": "goes", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tasks" / "goes.jsonl")}},
        "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "tasks" / "goes.yaml").write_text(yaml.safe_dump(task))
    model = to_plain(fitted(tmp_path / "original", replace(TINY, hidden=32)))
    held = {"name": "held", "kind": "text", "shards": [str(sets / "held")]}
    watch = {
        "every": 2,
        "original": str(tmp_path / "original"),
        "tasks": ["goes"],
        "tasks_from": str(tmp_path / "tasks"),
    }
    write_run(
        tmp_path, model=model, data={"validation": [held]}, evaluation={"text": watch},
        training={"steps": 4, "init_from": str(tmp_path / "export"), "freeze_global_steps": 2},
        checkpoint={"every": 2},
    )  # fmt: skip
    config = load_config(tmp_path / "config.yaml")
    weights = dict(ReferenceModel(config.model, config.vocabulary).state_dict())
    warm_start(tmp_path / "original", weights, config.model, config.vocabulary, config.data.units)
    write_export(tmp_path / "export", weights, config, {"step": 0})
    return tmp_path, theirs


def changed(folder: Path, name: str, **text: Any) -> Config:
    config = load_config(folder / "config.yaml")
    watched = replace(config.evaluation, text=replace(config.evaluation.text, **text))
    return replace(config, evaluation=watched, run=replace(config.run, dir=str(folder / name)))


def test_before_during_and_after_stand_beside_the_original(made: tuple[Path, Any]) -> None:
    folder, theirs = made
    config = changed(folder, "run")
    train(config)
    run = folder / "run"
    rows = {what: measures for what, _, measures in ability_rows(run, read_metrics(run))}
    assert list(rows) == ["original", "step 0", "step 2", "step 4"]
    total, pieces = 0.0, 0
    for ids in sampled(theirs, 60, 24)[40:]:
        whole = torch.tensor([[1, *ids.tolist()]])
        with torch.no_grad():
            total += float(theirs(whole, labels=whole).loss) * len(ids)
        pieces += len(ids)
    original = rows["original"]
    assert original["text_perplexity"] == pytest.approx(math.exp(total / pieces), rel=1e-4)
    assert original["goes_acc"] >= 0.8
    # At the start the model is the original, but for what speech ids and markers get.
    start = rows["step 0"]
    assert original["text_perplexity"] < start["text_perplexity"] < 1.6 * original["text_perplexity"]
    assert start["goes_acc"] == original["goes_acc"]
    lines = [r for r in read_metrics(run) if "ability_text_perplexity" in r]
    assert [r["step"] for r in lines] == [2, 4]
    assert all(r["ability_text_perplexity_original"] == original["text_perplexity"] for r in lines)
    # Watching changes nothing: neither random numbers nor weights.
    train(changed(folder, "unwatched", every=0))
    watched, alone = (
        [(r["loss"], r["grad_norm"]) for r in read_metrics(folder / name)] for name in ("run", "unwatched")
    )
    assert watched == alone
    page = write_report([run]).read_text()
    assert "Text ability" in page and "goes acc" in page
    # A longer run goes on without the original's checkpoint: its figures are there.
    shutil.rmtree(folder / "original")
    train(replace(config, training=replace(config.training, steps=6)))
    again = {what: measures for what, _, measures in ability_rows(run, read_metrics(run))}
    assert again["original"] == original and again["step 0"] == start and "step 6" in again


def test_a_broken_trunk_shows(made: tuple[Path, Any]) -> None:
    """Control: rows of the first layer's projection in another order are as large, and mean nothing."""
    from megatron_lst.inference.export import load_export

    folder, _ = made
    weights = dict(load_export(folder / "export").weights)
    (name,) = (
        name for name in weights if name.startswith("global_transformer.") and name.endswith("0.mlp.down_proj.weight")
    )
    weights[name] = weights[name].flip(0)
    config = changed(folder, "broken")
    write_export(folder / "other", weights, config, {"step": 0})
    train(replace(config, training=replace(config.training, steps=1, init_from=str(folder / "other"))))
    train(replace(changed(folder, "whole"), training=replace(config.training, steps=1)))
    broken, whole = (
        {what: measures for what, _, measures in ability_rows(folder / run, read_metrics(folder / run))}["step 0"]
        for run in ("broken", "whole")
    )
    assert broken["text_perplexity"] > 1.2 * whole["text_perplexity"]
    assert broken["goes_acc"] <= whole["goes_acc"]


def _on_ranks(config: Config) -> None:
    train(config)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_ranks_measure_the_same(made: tuple[Path, Any], ranks: RankPool) -> None:
    folder, _ = made
    train(changed(folder, "one"))
    ranks.run(_on_ranks, 2, changed(folder, "two"))
    one, two = (ability_rows(folder / run, read_metrics(folder / run)) for run in ("one", "two"))
    for (what, _, mine), (_, _, other) in zip(one, two, strict=True):
        assert other == pytest.approx(mine, rel=1e-4), what


def test_nothing_to_measure_on_is_said_before_the_first_step(made: tuple[Path, Any]) -> None:
    folder, _ = made
    config = changed(folder, "none", tasks=())
    with pytest.raises(UserError, match="evaluation.text.every=2: there is nothing to measure on"):
        train(replace(config, data=replace(config.data, validation=())))
