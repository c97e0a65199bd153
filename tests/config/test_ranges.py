"""Every number of the schema has a range, written beside it; each boundary is tried, from a file and by name."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from lst_prep.config import PrepConfig
from megatron_lst.config import Config, load_config
from megatron_lst.config.document import sections
from megatron_lst.config.load import build
from megatron_lst.errors import UserError
from megatron_lst.values import Place, Range

REQUIRED = {"SourceConfig": {"name": "a", "kind": "text", "shards": ["x"]}, "TextSource": {"name": "a", "path": "x"}}
BESIDE: dict[str, Any] = {  # what a boundary needs beside it, so that no other check refuses it
    "vocabulary.text_size": {"bos": 0, "eos": 0},
    "vocabulary.bos": {"text_size": 2**31 - 1},
    "vocabulary.eos": {"text_size": 2**31 - 1},
    "vocabulary.codebooks": lambda value: {"speech_size": value} if 1 <= value < 2**31 else {},
}
IN_TURN = {"vocabulary.bos": 2**31 - 2, "vocabulary.eos": 2**31 - 2}  # an id is below the number of pieces


def rules(kind: Any) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """(plain type, rules) of every leaf of a key's type."""
    if typing.get_origin(kind) is Annotated:
        yield typing.get_args(kind)[0], typing.get_args(kind)[1:]
    elif typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        for part in typing.get_args(kind):
            if part not in (type(None), Ellipsis):
                yield from rules(part)
    else:
        yield kind, ()


def leaves(config: type) -> Iterator[tuple[str, type, str, type, tuple[Any, ...], bool]]:
    """(section.key, class of the section, key, plain type, rules, whether it is a list) of a whole configuration."""
    for section, cls in [("", config), *sections(config)]:
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            kind = hints[field.name]
            for plain, found in rules(kind):
                listed = typing.get_origin(kind) is tuple or any(
                    typing.get_origin(a) is tuple for a in typing.get_args(kind)
                )
                yield f"{section}.{field.name}".lstrip("."), cls, field.name, plain, found, listed


def without_range(config: type) -> list[str]:
    return [
        key
        for key, _, _, plain, found, _ in leaves(config)
        if plain in (int, float) and not any(isinstance(rule, Range) for rule in found)
    ]


NUMBERS = [
    pytest.param(key, cls, name, plain, next(r for r in found if isinstance(r, Range)), listed, id=f"{of}:{key}")
    for of, config in (("run", Config), ("prep", PrepConfig))
    for key, cls, name, plain, found, listed in leaves(config)
    if plain in (int, float) and found
]


def test_every_number_has_a_range() -> None:
    assert len(NUMBERS) > 80
    assert without_range(Config) == without_range(PrepConfig) == []


def test_a_number_without_one_would_be_found_and_takes_anything() -> None:
    @dataclass
    class Careless:
        many: int | None = None
        rate: float = 0.0
        listed: tuple[float, ...] = ()
        good: Annotated[float, Range(0)] = 0.0

    assert without_range(Careless) == ["many", "rate", "listed"]
    assert math.isnan(build(Careless, {"rate": math.nan}).rate)  # the control: this is what a range is for
    with pytest.raises(UserError, match="good: must be a finite number, got nan"):
        build(Careless, {"good": math.nan})


@pytest.mark.parametrize(("key", "cls", "name", "plain", "range_", "listed"), NUMBERS)
def test_every_boundary(key: str, cls: type, name: str, plain: type, range_: Range, listed: bool) -> None:
    def attempt(value: float) -> str:
        beside = BESIDE.get(key, {})
        beside = beside(value) if callable(beside) else beside
        values = REQUIRED.get(cls.__name__, {}) | beside | {name: [value] if listed else value}
        try:
            build(cls, values, "section", "f.yaml, line 7")
        except UserError as error:
            return str(error)
        return ""

    def refused(value: float) -> None:
        where = f"f.yaml, line 7: section.{name}{'[0]' if listed else ''}: must be "
        assert attempt(value).startswith(where), (value, attempt(value))
        assert str(value) in attempt(value)

    whole = plain is int
    step = 1 if whole else math.ulp(max(1.0, abs(range_.least)))
    low, below = (range_.least + step, range_.least) if range_.above else (range_.least, range_.least - step)
    assert not attempt(low) or "must hold" in attempt(low), attempt(low)  # some must be in order with others
    refused(below)
    refused(-(10**30) if whole else -1e300)
    if math.isfinite(range_.most):
        step = 1 if whole else math.ulp(range_.most)
        high, above = (range_.most - step, range_.most) if range_.below else (range_.most, range_.most + step)
        high = IN_TURN.get(key, high)
        assert not attempt(high) or "must hold" in attempt(high), attempt(high)
        assert "must be" in attempt(above)
    for odd in (math.nan, math.inf, -math.inf):
        assert attempt(odd), odd
        if not whole:
            refused(odd)
    assert attempt(10**400), "larger than any float"


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999", "-1e999", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("key", ["training.lr", "training.beta1", "model.rope_theta", "data.seed", "training.steps"])
def test_numbers_that_are_none_name_key_file_and_line(tmp_path: Path, key: str, text: str) -> None:
    section, _, name = key.partition(".")
    path = tmp_path / "run.yaml"
    path.write_text(f"# a run\n{section}:\n  {name}: {text}\n")
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}, line 3: {key}: ")
    with pytest.raises(UserError) as caught:
        load_config(path, [f"{key}=-1"])
    assert str(caught.value).startswith(f"override '{key}=-1': {key}: must be ")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Range(1), "at least 1"),
        (Range(0, above=True), "above 0"),
        (Range(0, 1), "between 0 and 1"),
        (Range(0, 1, below=True), "at least 0 and below 1"),
        (Range(0, 1, above=True), "above 0 and at most 1"),
        (Range(0, 2**64 - 1), "between 0 and 2^64 - 1"),
    ],
)
def test_ranges_read_as_sentences(rule: Range, text: str) -> None:
    assert str(rule) == text
    with pytest.raises(ValueError, match=re.escape(f"must be {text}, got -5")):
        rule.settle(-5)


def test_seeds_are_64_bits_and_are_used_as_such(tmp_path: Path) -> None:
    """The largest one draws data and weights; the same bits, whatever a library makes of large numbers."""
    from megatron_lst.draws import bits

    (tmp_path / "run.yaml").write_text("")
    config = load_config(
        tmp_path / "run.yaml", ["training.seed=18446744073709551615", "data.seed=18446744073709551615"]
    )
    assert bits(2, config.data.seed, "test").tolist() != bits(2, 0, "test").tolist()
    with pytest.raises(UserError, match=r"data\.seed: must be between 0 and 2\^64 - 1"):
        load_config(tmp_path / "run.yaml", ["data.seed=18446744073709551616"])


def test_every_path_is_marked_as_one() -> None:
    """One rule for all: what holds a place on disk is a path, whichever section it is in."""
    marked = {key for key, *_, found, _ in leaves(Config) if any(isinstance(rule, Place) for rule in found)}
    assert marked == {
        "data.cache",
        "data.sources[].shards",
        "engine.deepspeed_config",
        "evaluation.text.original",
        "evaluation.text.tasks_from",
        "run.dir",
        "training.init_from",
    }
    prep = {key for key, *_, found, _ in leaves(PrepConfig) if any(isinstance(rule, Place) for rule in found)}
    assert {"out", "manifests", "audio.root", "units.codebook", "text[].path"} <= prep
