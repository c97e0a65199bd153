"""Tables show all of their words and numbers, however narrow the terminal is."""

import io

from rich.console import Console
from rich.table import Table

from megatron_lst.cli.tables import narrow_table

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
