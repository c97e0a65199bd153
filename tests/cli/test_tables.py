"""Tables show all of their words and numbers, and break no word at 80 columns."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.cli.tables import narrow_table, print_table
from tests.training.tiny import write_run

NAMES = ("module", "training,\nrow", "mean of silences", "seconds")
ROW = ("decoder.cross_attention", "1,234,567.89", "12.5", "not in this run")


def shown(table: Table) -> str:
    table.add_row(*ROW)
    out = io.StringIO()
    Console(file=out, width=40).print(table)
    return out.getvalue()


def test_nothing_is_cut_short() -> None:
    said = "".join(shown(narrow_table("title", NAMES, left=["module"])).split())
    assert "…" not in said
    letters = "".join((*NAMES, *ROW)).replace(" ", "").replace("\n", "")
    assert all(said.count(letter) >= letters.count(letter) for letter in set(letters))
    assert "…" in shown(Table(*NAMES))  # the control: rich's own choice


def words_of(table: Table) -> set[str]:
    cells = [cell for column in table.columns for cell in (column.header, *column.cells)]
    return {word for cell in cells for word in Text.from_markup(str(cell)).plain.split()}


def test_words_stay_whole_where_there_is_room() -> None:
    def table() -> Table:
        made = narrow_table("title", ("strategy", "what it is", "n"), left=["strategy", "what it is"])
        made.add_row("curriculum", "a long sentence of many short words that go on and on " * 3, "1,234,567")
        made.add_row("aligned,separate", "another one", "2")
        return made

    out, folded = io.StringIO(), io.StringIO()
    print_table(table(), Console(file=out, width=44))
    assert words_of(table()) <= set(out.getvalue().split())
    assert max(map(len, out.getvalue().splitlines())) <= 44
    Console(file=folded, width=44).print(table())
    assert not words_of(table()) <= set(folded.getvalue().split())  # the control: rich by itself breaks them


COMMANDS = ("data inspect", "data simulate", "data patches", "flops", "plan", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_breaks_a_word_at_80_columns(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    printed: list[Table] = []
    real = Console.print

    def recording(self: Console, *objects: Any, **options: Any) -> None:
        printed.extend(thing for thing in objects if isinstance(thing, Table))
        real(self, *objects, **options)

    monkeypatch.setattr(Console, "print", recording)
    given = [] if command == "doctor" else [str(config)]
    result = CliRunner().invoke(app, [*command.split(), *given])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert printed
    there = set(result.output.split())
    broken = {word for table in printed for word in words_of(table) if len(word) <= 30 and word not in there}
    assert not broken, f"{broken}\n{result.output}"
    lines = [line for line in result.output.splitlines() if str(tmp_path) not in line]  # paths and commands to copy
    assert max(map(len, lines)) <= 80
