"""`lst config`: what a configuration comes to and from where; schemas that hold what is shipped."""

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.cli.configuration import Of, _class
from megatron_lst.config import load_config
from megatron_lst.config.document import to_json_schema
from megatron_lst.config.load import read_yaml
from megatron_lst.config.paths import absolute
from megatron_lst.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def lst(*arguments: str) -> str:
    answer = CliRunner().invoke(app, [*arguments])
    if answer.exception and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_what_is_shown_builds_the_same_configuration(tmp_path: Path) -> None:
    given = [str(CONFIGS / "lst-7b.yaml"), "run.dir=odd: name # 3"]
    (tmp_path / "shown.yaml").write_text(lst("config", "show", *given))
    assert load_config(tmp_path / "shown.yaml") == absolute(load_config(given[0], given[1:]))


def test_each_value_has_its_place() -> None:
    path = str(CONFIGS / "lst-1b.yaml")
    found = json.loads(lst("config", "show", path, "training.lr=1e-4", "--json"))
    assert found["training.lr"] == {"value": 1e-4, "from": "override 'training.lr=1e-4'"}
    assert found["training.beta1"]["from"] == "default"
    where = found["model.layers"]["from"]
    assert where.startswith(str(CONFIGS / "sizes" / "1b.yaml"))
    line = int(where.rpartition(" ")[2])
    assert "layers: 25" in (CONFIGS / "sizes" / "1b.yaml").read_text().splitlines()[line - 1]
    changed = json.loads(lst("config", "show", path, "--changed", "--json"))
    assert "training.beta1" not in changed
    assert changed["model.layers"]["value"] == 25


def test_preparations_are_shown_too_and_other_files_refused(tmp_path: Path) -> None:
    assert "extractor: whisper" in lst("config", "show", str(CONFIGS / "prep-demo.yaml"))
    assert "codebooks: [" in lst("config", "show", str(next((CONFIGS / "import").glob("*.yaml"))))
    assert "template: markers" in lst("config", "show", str(CONFIGS / "prep-chat-demo.yaml"))
    (tmp_path / "mixed.yaml").write_text("model: {}\nmanifests: []\n")
    with pytest.raises(UserError, match=r"line 2: manifests: .*`lst prep run`, and this one is for `lst train`"):
        lst("config", "show", str(tmp_path / "mixed.yaml"))


@pytest.mark.parametrize(
    ("of", "files"),
    [
        (Of.run, [*CONFIGS.glob("lst-*.yaml"), *CONFIGS.glob("base-*.yaml"), CONFIGS / "demo.yaml"]),
        (Of.prep, [CONFIGS / "prep-demo.yaml"]),
        (Of.imports, [*(CONFIGS / "import").glob("*.yaml")]),
        (Of.chat, [CONFIGS / "prep-chat-demo.yaml"]),
    ],
    ids=["run", "prep", "import", "chat"],
)
def test_the_schemas_hold_what_is_shipped(of: Of, files: list[Path]) -> None:
    schema = json.loads(lst("config", "schema", of.value))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert len(files) >= 1
    for path in files:
        jsonschema.validate(json.loads(json.dumps(read_yaml(path))), schema)


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    schema = to_json_schema(_class(Of.run), "")
    for wrong in (
        {"training": {"stepz": 1}},
        {"training": {"steps": 0}},
        {"training": {"steps": "many"}},
        {"patching": {"strategy": "dynamic"}},
        {"data": {"sources": [{"nome": "speech"}]}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
        with pytest.raises(UserError):
            from megatron_lst.config.load import build

            build(_class(Of.run), wrong)


def test_the_version_is_said() -> None:
    import megatron_lst

    assert lst("--version") == f"megatron-lst {megatron_lst.__version__}\n"
