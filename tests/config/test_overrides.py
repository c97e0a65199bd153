"""Values as a shell gives them: text stays as it stands, numbers are what everybody reads, paths are expanded."""

from pathlib import Path
from typing import Any

import pytest

from lst_prep.config import PrepConfig
from megatron_lst.config import Config, load_config
from megatron_lst.config.load import build, dump_yaml, merge, parse_overrides, parse_yaml
from megatron_lst.errors import UserError

LITERAL = [
    "runs/my run #3",
    "010",
    "1:30",
    "0x10",
    "1e3",
    "2024-01-01",
    "yes",
    "off",
    "null",
    "7",
    "3.5",
    "a: b",
    "[a]",
    "{a: b}",
    "*x",
    "&x",
    "!x",
    "- a",
    "a # b",
    "'a",
    'a"',
    " a ",
    "%TAG",
    "@x",
    "`id`",
    "run=2",
    "mix-30%speech",
    "100$",
    "ü",
]


def load(folder: Path, *overrides: str, text: str = "") -> Config:
    path = folder / "run.yaml"
    path.write_text(text)
    loaded: Config = load_config(path, overrides)
    return loaded


def refusal(folder: Path, *overrides: str, text: str = "") -> str:
    with pytest.raises(UserError) as caught:
        load(folder, *overrides, text=text)
    return str(caught.value)


@pytest.mark.parametrize("text", LITERAL)
def test_text_is_taken_as_it_stands_and_survives_the_run_folder(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, f"run.dir={text}")
    assert config.run.dir == text
    assert build(Config, parse_yaml(dump_yaml(config))) == config  # as `config.yaml` is written and read


def test_yaml_would_have_lost_it() -> None:
    """The control: why a text is not read as YAML."""
    assert parse_yaml("my run #3") == "my run"
    assert parse_yaml("off") is False


@pytest.mark.parametrize("text", ["010", "1:30", "2024-01-01", "0x10", "1e", "00"])
def test_text_in_a_file_that_yaml_1_1_takes_for_a_number_stays_text(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text=f"run: {{dir: {text}}}").run.dir == str(tmp_path / text)


@pytest.mark.parametrize(
    "text",
    [
        "'10'",
        "１０",
        "ten",
        "2001-01-01",
        "1e400",
        "nan",
        "inf",
        "null",
        "[10]",
        "10.5.1",
        "--10",
        "010",
        "-010",
        "1:30",
        "0x10",
        "0b11",
        "0o17",
        "1_0",
        "1__000",
        "10 #3",
        "1,000",
        " 10",
        "10 ",
        "",
        "~",
        "true",
    ],
)
@pytest.mark.parametrize("key", ["training.steps", "training.lr", "data.seed"])
def test_numbers_in_other_notations_are_refused(tmp_path: Path, key: str, text: str) -> None:
    message = refusal(tmp_path, f"{key}={text}")
    assert message.startswith(f"override {f'{key}={text}'!r}: {key}: "), message
    if text in ("010", "1:30", "0x10", "1_0"):
        assert "written in decimal" in message


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "0b11", "1_0", "1:30.5", "0o17", "!!int 010", "!!int '0x10'"])
def test_and_in_files_with_their_line(tmp_path: Path, text: str) -> None:
    message = refusal(tmp_path, text=f"training:\n  warmup_steps: 3\n  steps: {text}\n")
    assert f"{tmp_path / 'run.yaml'}" in message
    assert "line 3" in message
    assert "decimal" in message


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("+10", 10), ("200_000", 200_000), ("1_000_000", 10**6), ("2e5", 200_000), ("1.5e1", 15), ("7.", 7)],
)
def test_numbers_as_people_write_them(tmp_path: Path, text: str, value: int) -> None:
    assert load(tmp_path, f"training.steps={text}").training.steps == value
    assert load(tmp_path, text=f"training: {{steps: {text}}}").training.steps == value


def test_a_float_that_cannot_hold_a_whole_number_is_not_taken_for_one(tmp_path: Path) -> None:
    assert load(tmp_path, "data.seed=9007199254740993").data.seed == 2**53 + 1
    assert "whole number" in refusal(tmp_path, "data.seed=9.007199254740993e18")


PATHS = ["run.dir", "data.cache", "training.init_from", "engine.deepspeed_config"]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NO_SUCH", raising=False)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("~", "/home/me"),
        ("~/runs/x #3", "/home/me/runs/x #3"),
        ("$SCRATCH/runs", "/scratch/me/runs"),
        ("a/${SCRATCH}/b", "a//scratch/me/b"),
        ("a~b", "a~b"),
        ("s3://b/~c", "s3://b/~c"),
    ],
)
@pytest.mark.parametrize("key", PATHS)
def test_a_path_is_expanded_wherever_it_is_given(tmp_path: Path, key: str, path: str, found: str) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(load(tmp_path, f"{key}={path}"), section), name) == found
    if "#" not in path:
        quoted = f"{section}: {{{name}: '{path}'}}"
        in_file = found if "://" in found else str(tmp_path / found)  # a relative one counts from the file
        assert getattr(getattr(load(tmp_path, text=quoted), section), name) == in_file


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("path", ["$NO_SUCH/runs", "a/${NO_SUCH}/b", "~nobody-at-all/x", "$7", ""])
@pytest.mark.parametrize("key", PATHS)
def test_a_path_that_cannot_be_expanded_is_refused(tmp_path: Path, key: str, path: str) -> None:
    message = refusal(tmp_path, f"{key}={path}")
    assert message.startswith(f"override {f'{key}={path}'!r}: {key}: "), message


@pytest.mark.usefixtures("home")
def test_the_same_rule_for_paths_in_lists_in_files_and_in_a_preparation(tmp_path: Path) -> None:
    sources = "data:\n  sources:\n    - {name: $SCRATCH, kind: text, shards: [s3://b/c, ~/x]}"
    source = load(tmp_path, text=sources).data.sources[0]
    assert source.shards == ("s3://b/c", "/home/me/x")
    assert source.name == "$SCRATCH"  # the control: a text that is no path
    assert "shards[0]: '$NO_SUCH/x'" in refusal(tmp_path, "data.sources=[{name: a, kind: text, shards: [$NO_SUCH/x]}]")
    assert build(PrepConfig, parse_overrides(["out=$SCRATCH/x"], PrepConfig)).out == "/scratch/me/x"
    with pytest.raises(UserError, match=r"out: '\$NO_SUCH/x': the variable"):
        build(PrepConfig, parse_overrides(["out=$NO_SUCH/x"], PrepConfig))
    with pytest.raises(UserError, match="null character"):
        build(Config, {"run": {"dir": "a\0b"}})


@pytest.mark.parametrize("text", ["'runs/a'", '"runs/a b"', "''"])
def test_quotation_marks_that_the_shell_left_are_refused(tmp_path: Path, text: str) -> None:
    assert "quotation marks" in refusal(tmp_path, f"run.dir={text}")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "UTF-8" in refusal(tmp_path, "run.dir=a\udcff")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("parallel.split=[1, 2]", {"parallel": {"split": [1, 2]}}),
        ("model.kv_heads=null", {"model": {"kv_heads": None}}),
        ("data.cache=null", {"data": {"cache": None}}),
        ("parallel.sequence=true", {"parallel": {"sequence": True}}),
        ("parallel.sequence=off", {"parallel": {"sequence": False}}),
        ("engine.fp8=none", {"engine": {"fp8": "none"}}),
        ("training={steps: 5, lr: 1e-3}", {"training": {"steps": 5, "lr": 1e-3}}),
        ("evaluation.directions=[S->S]", {"evaluation": {"directions": ["S->S"]}}),
        ("evaluation={}", {"evaluation": {}}),
    ],
)
def test_values_of_other_types(override: str, value: dict[str, Any]) -> None:
    assert parse_overrides([override], Config) == value


def test_a_section_and_its_key_may_both_be_given(tmp_path: Path) -> None:
    config = load(tmp_path, "training={steps: 5, warmup_steps: 1}", "training.steps=6", text="training: {lr: 1e-3}")
    assert (config.training.steps, config.training.warmup_steps, config.training.lr) == (6, 1, 1e-3)
    assert merge({"a": 1}, {"a": 2}) == {"a": 2}


def test_a_mistyped_choice_has_the_nearest_one(tmp_path: Path) -> None:
    assert "did you mean 'static'" in refusal(tmp_path, "patching.strategy=statik")
    assert "expected a list" in refusal(tmp_path, "data.sources.0.name=x")
    assert "true or false" in refusal(tmp_path, "parallel.sequence=1")
