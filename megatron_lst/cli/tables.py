"""Tables that 80 columns hold."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def narrow_table(title: str, columns: Iterable[str], left: Collection[str]) -> "Table":
    """A table without frames, whose headings and texts go on in the next line: nothing is cut short.

    Args:
        left: the columns of words; those of numbers are on the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table
