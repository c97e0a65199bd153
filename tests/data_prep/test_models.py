"""A model that is replaced in place, under the name that the configuration gives it, is not mixed into a folder."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lst_prep.config import AlignConfig, JobConfig, PrepConfig, TextSource, UnitsConfig
from lst_prep.pipeline import Preparation, run
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError
from tests.data_prep.test_neural import CORPUS, ctc, hubert  # noqa: F401 - fixtures

transformers = pytest.importorskip("transformers")


@pytest.fixture
def config(hubert: str, ctc: str, tmp_path: Path) -> PrepConfig:  # noqa: F811
    """The human recordings in two items, with copies of the tiny models, which a test may replace."""
    models = tmp_path / "models"
    for name, source in (("hubert", hubert), ("ctc", ctc)):
        shutil.copytree(source, models / name)
    shutil.copy(load_tokenizer("mistral-v1").path, models / "tokenizer.model")
    np.save(models / "codebook.npy", np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32))
    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    chosen = [{**e, "audio": str(CORPUS / e["audio"])} for e in lines if e["source"] == "librivox"]
    assert len({e["document"] for e in chosen}) > 1
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(e) + "\n" for e in chosen))
    (tmp_path / "text.txt").write_text("It was, he said, quite another matter.\n")
    return PrepConfig(
        manifests=(str(tmp_path / "m.jsonl"),),
        text=(TextSource("toy", str(tmp_path / "text.txt")),),
        out=str(tmp_path / "out"),
        tokenizer=str(models / "tokenizer.model"),
        units=UnitsConfig("hubert", str(models / "hubert"), layer=2, codebook=str(models / "codebook.npy")),
        align=AlignConfig("ctc", str(models / "ctc")),
        jobs=JobConfig(workers=1, item_pieces=1),
    )


def swap(config: PrepConfig, key: str) -> None:
    """Put other weights (or another vocabulary) where the configuration finds the model of `key`."""
    torch.manual_seed(1)
    if key == "units.codebook":
        np.save(config.units.codebook, np.random.default_rng(1).normal(size=(20, 32)).astype(np.float32))
    elif key == "units.model":
        old = transformers.HubertConfig.from_pretrained(config.units.model)
        transformers.HubertModel(old).save_pretrained(config.units.model)
    elif key == "align.model":
        old = transformers.Wav2Vec2Config.from_pretrained(config.align.model)
        transformers.Wav2Vec2ForCTC(old).save_pretrained(config.align.model)
    else:
        from sentencepiece import SentencePieceTrainer

        text = [e["text"] for e in map(json.loads, Path(config.manifests[0]).read_text().splitlines())]
        text.append(Path(config.text[0].path).read_text())
        with open(config.tokenizer, "wb") as file:
            SentencePieceTrainer.train(
                sentence_iterator=iter(text),
                model_writer=file,
                vocab_size=60,
                hard_vocab_limit=False,
                character_coverage=1.0,  # else it loses letters, and is refused
                minloglevel=2,
            )
        load_tokenizer.cache_clear()  # a rerun is another process


def contents(out: Path) -> dict[Path, int]:
    """Every file but those that each start touches."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("key", ["align.model", "units.model", "units.codebook", "tokenizer"])
def test_another_model_under_the_same_name_is_refused(config: PrepConfig, key: str) -> None:
    out = Path(config.out)
    run(config, quiet=True)
    stage = {"align.model": "align", "tokenizer": "text"}.get(key, "units")
    (out / "work" / stage / "receipts" / "0000" / "0000000.json").unlink()  # an item that is not done yet
    swap(config, key)
    before = contents(out)
    with pytest.raises(UserError, match=rf"^{re.escape(key)} '.*models/.*' is another model now") as refused:
        run(config, quiet=True)
    assert contents(out) == before
    said = re.search(r"fingerprint is (\w+), .* is of (\w+)\. .* or remove (.+) to do that", str(refused.value))
    assert said is not None
    assert said[1] != said[2]
    for path in map(Path, said[3].split(", ")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    fresh = replace(config, out=str(out.with_name("fresh")))
    run(config, quiet=True)
    run(fresh, quiet=True)
    for name in ("speech", "text"):  # what was told to be removed was enough
        mine, theirs = ShardSet.open(out / name), ShardSet.open(Path(fresh.out) / name)
        assert mine.fingerprint == theirs.fingerprint
    assert run(config, quiet=True)["plan"]  # the control: unchanged models are taken


def test_what_is_done_needs_no_model_and_a_codebook_that_is_gone_is_not_missed(config: PrepConfig) -> None:
    run(config, quiet=True)
    Path(config.units.codebook).unlink()
    (Path(config.out) / "work" / "units" / "receipts" / "0000" / "0000000.json").unlink()
    run(config, quiet=True)
    shutil.rmtree(config.units.model)
    shutil.rmtree(config.align.model)
    run(config, quiet=True)
    assert load_file(Path(config.out) / "codebook.safetensors")["centres"].shape == (20, 32)


def test_machines_with_different_models_are_found_before_shards_are_made(config: PrepConfig) -> None:
    """Two slices that begin at once find nothing to compare with."""
    whole = Preparation(config, quiet=True)
    assert whole.manifest() == 2
    whole.codebook()
    whole.units()
    whole.align()
    receipts = Path(config.out) / "work" / "align" / "receipts" / "0000"
    mine = receipts / "0000000.json"
    kept = mine.read_text()
    shutil.rmtree(receipts)
    swap(config, "align.model")
    Preparation(config, quiet=True, part="1/2").align()
    mine.write_text(kept)
    with pytest.raises(UserError, match=r"stage align: .*the aligner.*\w+ \(item 0\), \w+ \(item 1\)\. Remove"):
        whole.shards()
    shutil.rmtree(Path(config.out) / "work" / "align")
    whole.align()
    whole.text()
    assert set(whole.shards()) == {"speech", "text"}
