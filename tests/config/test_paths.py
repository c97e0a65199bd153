"""From where a relative path counts: the file that names it; the current folder for the command line and defaults."""

import dataclasses
import os
import pickle
from pathlib import Path

import pytest

from lst_prep.chat.config import ChatConfig
from lst_prep.config import PrepConfig
from lst_prep.layout import Layout, check_plan, plan_of
from megatron_lst.config import Config, load_config
from megatron_lst.config.load import build, dump_yaml, load_run, parse_yaml, read_yaml
from megatron_lst.config.paths import absolute, told
from megatron_lst.data.mixture import open_source
from megatron_lst.errors import UserError
from megatron_lst.training.resume import continue_config, resolve
from megatron_lst.training.start import settle_config

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "data: {sources: [{name: a, kind: text, shards: [../data/text, 's3://bucket/text', /data/text]}]}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configurations in it, the current one."""
    (tmp_path / "configs" / "below").mkdir(parents=True)
    (tmp_path / "configs" / "run.yaml").write_text(f"base: below/base.yaml\n{SOURCES}run: {{dir: ../runs/a}}\n")
    (tmp_path / "configs" / "below" / "base.yaml").write_text("training: {init_from: ../../exports/b}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(config: Config) -> list[str]:
    return [config.run.dir, str(config.training.init_from), *config.data.sources[0].shards]


def test_each_file_of_a_chain_names_paths_from_its_own_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = ["s3://bucket/text", "/data/text"]
    assert paths_of(load_config("configs/run.yaml")) == ["runs/a", "exports/b", "data/text", *remote]
    whole = [str(project / path) for path in ("runs/a", "exports/b", "data/text")]
    assert paths_of(load_config(project / "configs/run.yaml")) == [*whole, *remote]
    monkeypatch.chdir(project / "configs" / "below")
    assert paths_of(load_config("../run.yaml")) == ["../../runs/a", "../../exports/b", "../../data/text", *remote]
    assert absolute(load_config("../run.yaml")) == load_config(project / "configs/run.yaml")


def test_the_command_line_and_defaults_count_from_the_current_folder(project: Path) -> None:
    more = ["run.dir=here", "data.sources=[{name: a, kind: text, shards: [there]}]", "data.cache=../c"]
    config = load_config("configs/run.yaml", more)
    assert (config.run.dir, config.data.sources[0].shards, config.data.cache) == ("here", ("there",), "../c")
    assert load_config("configs/below/base.yaml").run.dir == "runs/default"


def test_a_file_may_count_as_standing_elsewhere(project: Path, tmp_path: Path) -> None:
    """What comes with the package stands in configs/ of the current folder, its bases too."""
    assert paths_of(load_config(project / "configs/run.yaml", at="configs/run.yaml"))[:2] == ["runs/a", "exports/b"]


def test_parent_folders_go_as_the_file_system_goes(project: Path) -> None:
    (project / "elsewhere" / "deep").mkdir(parents=True)
    os.rename(project / "configs", project / "elsewhere" / "deep" / "configs")
    os.symlink(project / "elsewhere" / "deep" / "configs", project / "configs")
    found = load_config("configs/run.yaml").run.dir
    assert os.path.realpath(found) == str(project / "elsewhere" / "deep" / "runs" / "a")


def test_names_are_no_paths(project: Path) -> None:
    (project / "prep.yaml").write_text("tokenizer: mistral-v1\nunits: {extractor: hubert, model: owner/model}\n")
    (project / "configs/prep.yaml").write_text("base: ../prep.yaml\nalign: {model: base}\ntext: [{name: a, path: t}]\n")
    config = build(PrepConfig, read_yaml("configs/prep.yaml"))
    assert (config.tokenizer, config.units.model, config.align.model) == ("mistral-v1", "owner/model", "base")
    assert config.text[0].path == "configs/t"
    (project / "owner" / "model").mkdir(parents=True)
    (project / "configs" / "base").mkdir()
    config = build(PrepConfig, read_yaml("configs/prep.yaml"))
    assert (config.units.model, config.align.model) == ("owner/model", "configs/base")
    (project / "prep.yaml").write_text("tokenizer: ./mistral-v1\nunits: {extractor: hubert, model: ./model}\n")
    config = build(PrepConfig, read_yaml(str(project / "configs/prep.yaml")))
    assert (config.tokenizer, config.units.model) == (str(project / "mistral-v1"), str(project / "model"))


def test_the_values_of_a_mapping_are_paths(project: Path) -> None:
    (project / "configs/chat.yaml").write_text("out: o\nsources: [{name: a, path: p}]\nspans: {b: ../s}\n")
    config = build(ChatConfig, read_yaml("configs/chat.yaml"))
    assert (config.spans, config.out, config.sources[0].path, config.template) == (
        {"b": "s"}, "configs/o", "configs/p", "tokenizer"
    )  # fmt: skip


def test_a_path_that_is_not_there_is_told_as_written_and_as_resolved(project: Path) -> None:
    config = load_config("configs/run.yaml")
    with pytest.raises(UserError) as caught:
        open_source(config, config.data.sources[0])
    assert "data/text (written '../data/text' in configs/run.yaml, line 2" in str(caught.value)
    assert "there is no such folder" in str(caught.value)
    sent = pickle.loads(pickle.dumps(config))
    assert told(sent.run.dir) == told(config.run.dir) != config.run.dir == sent.run.dir
    assert told("given") == "given"


def test_what_is_written_is_plain_text_and_reads_back(project: Path) -> None:
    config = load_config("configs/run.yaml")
    assert build(Config, parse_yaml(dump_yaml(config))) == config


def stored(config: Config, folder: Path) -> Path:
    """A run folder whose steps bind, with this config.yaml."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(config))
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def test_a_runs_own_file_means_the_same_from_everywhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(load_config("configs/run.yaml"))
    run = stored(absolute(config), project / "runs" / "a")
    monkeypatch.chdir(run)
    for found in (load_run(run), load_run("."), load_config("config.yaml")):
        assert paths_of(found)[0] == str(run)
        assert paths_of(found)[2] == str(project / "data/text")


def test_a_run_of_an_earlier_version_goes_on(project: Path) -> None:
    """Its config.yaml holds paths that count from the folder in which it was started."""
    config = load_config("configs/run.yaml")
    stored(resolve(config), project / "runs" / "a")
    assert paths_of(load_run("runs/a")) == paths_of(load_config("runs/a/config.yaml")) == paths_of(config)
    assert paths_of(settle_config(config)) == paths_of(config)
    assert paths_of(settle_config(load_config(project / "configs/run.yaml"))) != paths_of(config)


def test_shards_that_move_with_the_run_are_the_same_and_others_are_refused(project: Path) -> None:
    config = resolve(load_config(project / "configs/run.yaml"))
    local = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, sources=(dataclasses.replace(config.data.sources[0], shards=("data/text",)),)
        ),
    )
    old = parse_yaml(dump_yaml(absolute(local)).replace(str(project), "/moved"))
    continue_config(local, old)
    for change in ("/moved/data/text", "/moved/exports/b"):
        wrong = parse_yaml(dump_yaml(absolute(local)).replace(str(project), "/moved").replace(change, "/moved/other"))
        with pytest.raises(UserError, match="another configuration"):
            continue_config(local, wrong)


def test_a_preparation_is_the_same_from_every_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "m.jsonl").write_text("")
    (project / "t.txt").write_text("words")
    (project / "prep.yaml").write_text("out: made\nmanifests: [m.jsonl]\ntext: [{name: t, path: t.txt}]\n")

    def plan(path: str) -> str:
        return check_plan(Layout(project / "made"), absolute(build(PrepConfig, read_yaml(path))))

    first = plan("prep.yaml")
    (project / "made" / "tokenizer.json").touch()  # from here on the plan binds
    monkeypatch.chdir(project / "configs")
    assert plan("../prep.yaml") == plan(str(project / "prep.yaml")) == first
    (project / "prep.yaml").write_text("out: made\nmanifests: [m.jsonl]\ntext: [{name: t, path: u.txt}]\n")
    (project / "u.txt").write_text("words")
    with pytest.raises(UserError, match="another plan"):
        plan("../prep.yaml")


def test_a_preparation_of_an_earlier_version_goes_on(project: Path) -> None:
    """Its plan holds paths that count from the folder in which it was begun."""
    (project / "m.jsonl").write_text("")
    (project / "t.txt").write_text("words")
    (project / "prep.yaml").write_text("out: made\nmanifests: [m.jsonl]\ntext: [{name: t, path: t.txt}]\n")
    config, layout = build(PrepConfig, read_yaml("prep.yaml")), Layout("made")
    assert list(plan_of(config)["inputs"]) == ["m.jsonl", "t.txt"]  # as an earlier version wrote them
    first = check_plan(layout, config)
    (project / "made" / "tokenizer.json").touch()
    assert check_plan(layout, absolute(config)) == first
    assert list(layout.texts()) == [str(project / "t.txt")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_what_shipped_configurations_name_lies_in_the_checkout(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`../data/demo` and not `data/demo`: nothing is looked for within configs/."""
    monkeypatch.chdir(ROOT)
    for line in path.read_text().splitlines():
        if not line.lstrip().startswith("#"):
            assert not any(f"{before}{name}/" in line for before in " [" for name in ("data", "runs", "exports")), line
