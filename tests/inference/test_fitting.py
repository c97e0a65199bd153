"""The configuration that fits a checkpoint: for the recipes' models, for a tiny one to the end, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("transformers")

from megatron_lst.cli.warm_start import warm_start
from megatron_lst.config import load_config
from megatron_lst.config.load import build, to_plain
from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import load_export
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.families import differences
from megatron_lst.inference.fitting import TextTokenizer, fitting_sections
from megatron_lst.vocabulary import Vocabulary
from tests.support.checkpoints import LLAMA3, THEIRS, TOKENS, expected_of, saved
from tests.support.published import PUBLISHED
from tests.support.tokenizers import character_tokenizer

RECIPES = Path(__file__).parents[2] / "configs" / "warm"
app = typer.Typer()
app.command()(warm_start)


def lst(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_every_recipe_is_of_a_published_model() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {name.lower() for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_fits_its_model(name: str) -> None:
    theirs, tokenizer = PUBLISHED[name]
    recipe = load_config(RECIPES / f"{name.lower()}.yaml")
    fitting = fitting_sections(theirs, TextTokenizer("tokenizer.json", *tokenizer))
    assert to_plain(recipe.model) == to_plain(build(ModelConfig, fitting["model"], "model"))
    assert recipe.vocabulary == build(Vocabulary, {**fitting["vocabulary"], "multiple": 1024}, "vocabulary")
    assert differences(theirs, recipe.model, recipe.vocabulary, recipe.data.units) == []
    # The comparison can fail: each size is looked at.
    other = replace(recipe.model, layers=recipe.model.layers + 1)
    assert differences(theirs, other, recipe.vocabulary, recipe.data.units)


def test_a_window_limits_the_rows() -> None:
    theirs = {**THEIRS, "model_type": "mistral", "sliding_window": 48, "max_position_embeddings": 64}
    assert fitting_sections(theirs, None)["data"] == {"units": 48}
    assert fitting_sections({**theirs, "sliding_window": None}, None)["data"] == {"units": 64}
    assert fitting_sections({**theirs, "max_position_embeddings": 9999, "sliding_window": None}, None)["data"] == {
        "units": 4096
    }


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("llama", {"head_dim": 8, "rope_scaling": LLAMA3}), ("qwen2", {}), ("qwen3", {"head_dim": 6}), ("smollm3", {})],
)
def test_init_then_warm_start(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    """Without tokenizer files, and said so; the export's text logits are the language model's."""
    expected = expected_of(saved(tmp_path / "theirs", kind, **changes))
    output = lst("--init", tmp_path / "theirs", tmp_path / "c.yaml")
    assert "no tokenizer.json or tokenizer.model there" in output
    config = load_config(tmp_path / "c.yaml")
    assert (config.vocabulary.text_size, config.vocabulary.bos, config.vocabulary.eos) == (24, 1, 2)
    assert config.training.init_from == str(tmp_path / "exports/warm-theirs")
    lst(tmp_path / "c.yaml", tmp_path / "theirs", tmp_path / "export")
    model = load_export(tmp_path / "export").model()
    outputs = model.advance([model.counters(1)[0].add(TOKENS)], Cache(model.config, 1, one_call=True))
    found = outputs.logits(np.arange(len(TOKENS)))[:, :24]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_the_checkpoints_tokenizer_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "theirs", vocab_size=24, bos_token_id=None, eos_token_id=None)
    with pytest.raises(UserError, match="names no eos_token_id and there is no tokenizer"):
        lst("--init", tmp_path / "theirs", tmp_path / "c.yaml")
    character_tokenizer(tmp_path / "theirs" / "tokenizer.json", "abcdefghij")
    lst("--init", tmp_path / "theirs", tmp_path / "c.yaml")
    vocabulary = load_config(tmp_path / "c.yaml").vocabulary
    assert vocabulary.tokenizer_size is not None
    assert vocabulary.tokenizer_size == vocabulary.pieces < vocabulary.text_size == 24
    assert str(tmp_path / "theirs" / "tokenizer.json") in (tmp_path / "c.yaml").read_text()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "theirs")
    lst("--init", tmp_path / "theirs", tmp_path / "c.yaml")
    character_tokenizer(tmp_path / "theirs" / "tokenizer.json", "abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(UserError, match=r"tokenizer.json has \d+ pieces, the checkpoint's table 24: it is another"):
        lst("--init", tmp_path / "theirs", tmp_path / "other.yaml")
    with pytest.raises(UserError, match=r"tokenizer.json has \d+ pieces, vocabulary.text_size=24"):
        lst(tmp_path / "c.yaml", tmp_path / "theirs", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_what_init_refuses(tmp_path: Path) -> None:
    saved(tmp_path / "theirs")
    with pytest.raises(UserError, match="out: expected a name that ends in .yaml"):
        lst("--init", tmp_path / "theirs", tmp_path / "out")
    with pytest.raises(UserError, match="--init takes CHECKPOINT and OUT.yaml, and extra is a third"):
        lst("--init", tmp_path / "theirs", tmp_path / "c.yaml", "extra")
    with pytest.raises(UserError, match=r"no config\.json of a Hugging Face checkpoint"):
        lst("--init", tmp_path, tmp_path / "c.yaml")
    with pytest.raises(UserError, match="give CONFIG CHECKPOINT OUT"):
        lst(tmp_path / "c.yaml", tmp_path / "theirs")
    lst("--init", tmp_path / "theirs", tmp_path / "c.yaml")
    with pytest.raises(UserError, match="is there already"):
        lst("--init", tmp_path / "theirs", tmp_path / "c.yaml")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "gemma2"}))
    with pytest.raises(UserError, match="'gemma2' is not taken: its norms multiply by 1"):
        lst("--init", tmp_path / "theirs", tmp_path / "other.yaml")
