"""The configurations that come with the package are found by name, from anywhere; a file of one's own comes first."""

import tomllib
from pathlib import Path

import pytest

from megatron_lst.config import load_config
from megatron_lst.config.load import read_yaml
from megatron_lst.config.shipped import find, folder, names
from megatron_lst.errors import UserError
from megatron_lst.launching.docker import seen_inside


def test_each_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"lst-1b", "demo", "sizes/1b", "warm/llama-3.2-1b"} <= set(names())
    for name in names():
        assert read_yaml(name) == read_yaml(f"configs/{name}.yaml"), name
    assert load_config("lst-1b").model.hidden == load_config("lst-1b.yaml").model.hidden == 2048


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lst-1b.yaml").write_text("model: {hidden: 64, heads: 2}\n")
    assert find("lst-1b.yaml") is None
    assert load_config("lst-1b.yaml").model.hidden == 64


def test_it_is_a_base_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    Path("mine", "run.yaml").write_text("base: lst-1b.yaml\nrun: {dir: here}\n")
    config = load_config("mine/run.yaml")
    assert (config.model.hidden, Path(config.run.dir).parts[-2:]) == (2048, ("mine", "here"))


@pytest.mark.parametrize("given", ["lst-2b", "../demo", "configs", "/lst-1b", ""])
def test_others_are_not_found(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(given) is None


def test_a_slip_in_a_name_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean lst-420m, which comes with the package"):
        load_config("lst-42m")


def test_a_container_finds_it_in_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = seen_inside("lst-1b", ["run.dir=runs/a"], runs="runs", configs="configs")
    assert (inside.config, inside.overrides) == ("lst-1b", ("run.dir=runs/a",))


def test_they_are_all_in_the_wheel() -> None:
    root = folder()
    assert root is not None
    packaging = tomllib.loads((root.parent / "pyproject.toml").read_text())
    included = packaging["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["configs"] == "megatron_lst/config/shipped_configs"
