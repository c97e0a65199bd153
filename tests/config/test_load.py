"""Strict YAML: what a person mistypes is named, with the nearest right thing."""

from pathlib import Path

import pytest

from megatron_lst.config import Config, load_config
from megatron_lst.config.load import build, dump_yaml, merge, parse_overrides, parse_yaml, read_yaml
from megatron_lst.errors import UserError


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(write(folder, text), overrides)
    return str(caught.value)


def test_an_empty_file_is_the_papers_recipe(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {unitss: 4}", ["data.unitss", "unknown key", "'units'"]),
        ("modle: {}", ["modle", "'model'"]),
        ("training: {zzz: 1}", ["training.zzz", "lst config keys run"]),
        ("data: {sources: [{name: a, kind: text, shards: [x], weigth: 1}]}", ["data.sources[0].weigth", "'weight'"]),
        ("data: {sources: [{name: a, kind: spoken, shards: [x]}]}", ["data.sources[0].kind", "interleaved"]),
        ("data: {sources: [{kind: text, shards: [x]}]}", ["data.sources[0]", "missing name"]),
        ("model: {pooling: maxx}", ["model.pooling", "max, mean", "'max'"]),
        ("model: {hidden: wide}", ["model.hidden", "a whole number", "'wide'"]),
        ("model: {hidden: 2.5}", ["model.hidden", "a whole number"]),
        ("model: {hidden: true}", ["model.hidden", "a whole number", "True"]),
        ("parallel: {sequence: 1}", ["parallel.sequence", "true or false"]),
        ("training: {lr: fast}", ["training.lr", "a number"]),
        ("data: {sources: x}", ["data.sources", "a list"]),
        ("model: 3", ["model", "keys and values"]),
        ("run: {dir: 7}", ["run.dir", "text"]),
        ("- 1", ["run.yaml", "expected keys and values", "list"]),
        ("model: {hidden: [", ["run.yaml", "not valid YAML"]),
        ("model: {hidden: 64, hidden: 32}", ["run.yaml", "line 1", "'hidden'", "twice"]),
        ("model: {hidden: 64}\ndata: {}\nmodel: {}", ["line 3", "'model'", "twice"]),
        ("? [a, b]\n: 1", ["line 1", "a key must be a word"]),
        ("base: 3", ["base", "a list of files"]),
        ("base: [1]", ["base", "a list of files"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("guilty", ["lowest.yaml", "middle.yaml", "run.yaml"])
@pytest.mark.parametrize(
    ("mistake", "line", "why"),
    [
        ("data:\n  units: 64\n  unitss: 4", 3, "data.unitss: unknown key"),
        ("run: {dir: x}\nmodel:\n  hidden: wide", 3, "model.hidden: expected a whole number"),
        ("model: 3", 1, "model: expected keys and values"),
        ("modle: {}", 1, "modle: unknown key"),
        (
            "data:\n  sources:\n    - name: a\n      kind: text\n      weigth: 1",
            5,
            "data.sources[0].weigth: unknown key",
        ),
        ("data:\n  sources:\n    - {kind: text, shards: [x]}", 3, "data.sources[0]: missing name"),
        ("data:\n  sources:\n    - {name: a, kind: text, shards: [3]}", 3, "data.sources[0].shards[0]: expected text"),
    ],
)
def test_the_file_of_the_chain_and_the_line_are_named(
    tmp_path: Path, mistake: str, line: int, why: str, guilty: str
) -> None:
    chain = {
        "lowest.yaml": "training: {lr: 1e-3}\n",
        "middle.yaml": "base: lowest.yaml\n",
        "run.yaml": "base: middle.yaml\n",
    }
    for name, first_line in chain.items():
        write(tmp_path, first_line + (mistake if name == guilty else ""), name)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "run.yaml", ["training.steps=3"])
    assert str(caught.value).startswith(f"{tmp_path / guilty}, line {line + 1}: {why}")


def test_the_file_that_had_the_last_word_is_named(tmp_path: Path) -> None:
    write(tmp_path, "model: {hidden: wide, heads: 4}", "below.yaml")
    assert "run.yaml, line 3: model.hidden" in refusal(tmp_path, "base: below.yaml\nmodel:\n  hidden: narrow")
    write(tmp_path, "model:\n  hidden: 64\n  heads: many", "below.yaml")
    assert "below.yaml, line 3: model.heads" in refusal(tmp_path, "base: below.yaml\nmodel:\n  hidden: 32")


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("parallel.tensr=2", "parallel.tensr: unknown key"),
        ("parallel.tensor=two", "parallel.tensor: expected a whole number"),
        ("modle.hidden=2", "modle: unknown key"),
    ],
)
def test_an_override_is_named_as_such(tmp_path: Path, override: str, why: str) -> None:
    assert refusal(tmp_path, "parallel: {tensor: 1}", override).startswith(f"override '{override}': {why}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"gone\.yaml"):
        load_config(write(tmp_path, "base: gone.yaml"))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("4E-4", 4e-4), ("1.5e2", 150.0), ("3e4", 3e4), ("2", 2.0)]
)
def test_floats_read_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    assert load_config(write(tmp_path, f"training: {{lr: {text}}}")).training.lr == value


def test_whole_floats_are_whole_numbers(tmp_path: Path) -> None:
    steps = load_config(write(tmp_path, "training: {steps: 2e5}")).training.steps
    assert steps == 200_000
    assert isinstance(steps, int)


def test_text_that_looks_like_a_float_stays_text() -> None:
    assert parse_yaml("'1e-3'") == "1e-3"
    assert parse_yaml("e10") == "e10"
    assert parse_yaml("1.2.3") == "1.2.3"


def test_null_is_for_optional_keys_alone(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "model: {kv_heads: null}")).model.kv_heads is None
    assert "model.heads" in refusal(tmp_path, "model: {heads: null}")


def test_bases_merge_deeply_and_lists_replace(tmp_path: Path) -> None:
    write(tmp_path, "model: {hidden: 64, layers: 2}\nparallel: {split: [1, 1]}", "one.yaml")
    write(tmp_path, "model: {layers: 3}", "two.yaml")
    (tmp_path / "deeper").mkdir()
    path = write(tmp_path / "deeper", "base: [../one.yaml, ../two.yaml]\nmodel: {heads: 4}\nparallel: {split: [3]}")
    assert read_yaml(path) == {"model": {"hidden": 64, "layers": 3, "heads": 4}, "parallel": {"split": [3]}}


def test_a_base_that_names_itself_is_refused(tmp_path: Path) -> None:
    assert "leads back" in refusal(tmp_path, "base: run.yaml")
    write(tmp_path, "base: b.yaml", "a.yaml")
    with pytest.raises(UserError, match="leads back"):
        read_yaml(write(tmp_path, "base: a.yaml", "b.yaml"))


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {hidden: 64, heads: 4}")
    config = load_config(path, ["model.heads=2", "run.dir=runs/a b", "training.lr=1e-3", "parallel.split=[1, 2]"])
    assert (config.model.hidden, config.model.heads) == (64, 2)
    assert config.run.dir == "runs/a b"
    assert config.training.lr == 1e-3
    assert config.parallel.split == (1, 2)


@pytest.mark.parametrize("override", ["model.heads", "=3", "--tensor"])
def test_an_override_without_a_value_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        parse_overrides([override], Config)


def test_an_override_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    assert "did you mean 'tensor'" in refusal(tmp_path, "", "parallel.tensr=2")


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    text = "data: {sources: [{name: a, kind: text, shards: [x, y], weight: 0.5}]}\nparallel: {split: [1, 2]}"
    config = load_config(write(tmp_path, text))
    assert build(Config, parse_yaml(dump_yaml(config))) == config


def test_merge_leaves_its_arguments_alone() -> None:
    below, above = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(below, above) == {"a": {"b": 1, "c": 2}}
    assert below == {"a": {"b": 1}}
