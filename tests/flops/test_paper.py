"""The published accounting, recomputed: `lst flops --paper` says what the paper says, and from its inputs alone."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.flops import paper

ROUNDING = {"B tokens": 0.6, "%": 0.11, "B units": 0.2, "epochs": 0.2, "raw tokens per interleaved raw token": 0.005}


def lines() -> list[paper.Line]:
    return paper.unit_lines()


@pytest.mark.parametrize("line", lines(), ids=lambda line: f"{line.table}: {line.what}")
def test_accounting_agrees_with_what_is_published(line: paper.Line) -> None:
    if line.published is not None:
        assert line.recomputed == pytest.approx(line.published, abs=ROUNDING[line.unit])


def test_every_promised_table_is_there() -> None:
    published = {(line.table, line.published) for line in lines()}
    for figure in (("Table 13", 3.0), ("Table 13", 2.42), ("Table 4", 19.3), ("Table 4", 19.7), ("Tables 6-10", 105)):
        assert figure in published
    assert {87, 175, 95, 190, 108, 217} == {line.published for line in lines() if line.table == "Table 3"}


def test_nothing_recomputed_is_copied() -> None:
    """With a mixture of another kind every figure of the mixture moves away from the published one."""
    for line in paper.unit_lines(replace(paper.PAPER_MIX, text_ratio=0.5)):
        if line.table in ("Table 4", "Table 13") and line.published not in (None, 3.0):
            assert line.recomputed != pytest.approx(line.published, abs=ROUNDING[line.unit]), line.what


def test_published_figures_are_data_alone() -> None:
    """No published value is read by any computation of the module."""
    tree = ast.parse(Path(paper.__file__).read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "published"]


def test_true_flops_are_those_of_the_specification() -> None:
    found = {line.what: line.recomputed for line in paper.flop_lines()}
    assert found["LST: FLOPs of the same data / baseline"] == pytest.approx(0.92, abs=0.006)
    assert found["LST, decoder sees 512 units: FLOPs of the same data / baseline"] == pytest.approx(0.93, abs=0.006)
    assert 0.83 <= found["LST, text_path direct: FLOPs of the same data / baseline"] <= 0.86
    assert 1.13 <= found["LST: FLOPs of an equal number of units / baseline"] <= 1.16
    assert found["200k steps in 17 h on 32 H100: speed"] == pytest.approx(53.5, abs=0.1)


def test_the_command_prints_both_columns() -> None:
    plain = CliRunner().invoke(app, ["flops", "--paper"])
    assert plain.exit_code == 0
    assert "recomputed" in plain.output
    assert "published" in plain.output
    data = json.loads(CliRunner().invoke(app, ["flops", "--paper", "--json"]).output)
    assert {"recomputed", "published"} <= data["units"][0].keys()


def test_a_configuration_as_json_adds_up() -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "lst-1b.yaml"
    data = json.loads(CliRunner().invoke(app, ["flops", str(config), "--json"]).output)
    assert data["parameters"]["total"] == 1_528_443_904
    modules = [v["forward_row"] for name, v in data["flops"].items() if name != "total"]
    assert sum(modules) == pytest.approx(data["flops"]["total"]["forward_row"])
