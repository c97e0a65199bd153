"""Every key has a meaning that people can read, and a part of the system that reads it."""

import ast
import dataclasses
from pathlib import Path

import pytest

from lst_prep.chat.config import ChatConfig
from lst_prep.config import PrepConfig
from lst_prep.importing.config import ImportConfig
from megatron_lst.cli.configuration import preparation_page
from megatron_lst.config.document import field_texts, sections, to_markdown
from megatron_lst.config.schema import Config
from megatron_lst.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]


def keys() -> list[tuple[str, type, str]]:
    return [(name, cls, field.name) for name, cls in sections(Config) for field in dataclasses.fields(cls)]


@pytest.mark.parametrize("root", [Config, PrepConfig, ImportConfig, ChatConfig])
def test_every_key_has_a_meaning(root: type) -> None:
    found = [(name, cls, field.name) for name, cls in sections(root) for field in dataclasses.fields(cls)]
    silent = [f"{name}.{field}" for name, cls, field in found if not field_texts(cls).get(field)]
    assert not silent


def test_meanings_are_found_in_both_styles() -> None:
    assert field_texts(Vocabulary)["bos"] == field_texts(Vocabulary)["eos"]
    assert field_texts(Vocabulary)["multiple"].endswith("multiple of this.")


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == to_markdown(), "docs/configuration.md is out of date: run `make docs`"
    page = (ROOT / "docs" / "preparation.md").read_text()
    assert page == preparation_page(), "docs/preparation.md is out of date: run `make docs`"


def test_defaults_are_written_as_yaml_reads_them() -> None:
    page = to_markdown()
    assert "| `model.encoder_layers` | integer >= 1 | `1` |" in page
    assert "| `model.qk_norm` | true, false | `false` |" in page
    assert "| `model.kv_heads` | integer >= 1 or null | `null` |" in page
    assert "| `data.sources[].name` | text | required |" in page
    assert "| `data.sources[].shards` | list of path | required |" in page
    assert "| `training.min_lr_ratio` | number 0..1 | `0.01` |" in page
    assert "| `training.beta2` | number >= 0, < 1 | `0.95` |" in page
    assert "| `data.seed` | integer 0..2^64 - 1 | `0` |" in page


def test_every_key_is_read() -> None:
    """A key that nothing reads is a promise that nothing keeps."""
    read: set[str] = set()
    for path in (ROOT / "megatron_lst").rglob("*.py"):
        if path.parent.name == "config" and path.name != "schema.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    unread = [f"{name}.{field}" for name, _, field in keys() if field not in read]
    assert not unread
