"""Tables that 80 columns hold, without a word that is cut in two."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
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


def print_table(table: "Table", console: "Console | None" = None) -> None:
    """Print a table whose lines break between words, where the terminal is wide enough for its longest words.

    Rich by itself takes columns below the width of their words while others have room.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    console = console or Console()
    room = console.width - Measurement.get(console, console.options, table).minimum
    if room >= 0:
        texts = [[Text.from_markup(str(t)).plain for t in (c.header, *c.cells)] for c in table.columns]
        least = [max((len(w) for text in column for w in text.split()), default=1) for column in texts]
        most = [max((len(line) for text in column for line in text.splitlines()), default=1) for column in texts]
        for _ in range(room):
            widest = max(range(len(least)), key=lambda i: most[i] - least[i])
            if most[widest] <= least[widest]:
                break
            least[widest] += 1
        for column, width in zip(table.columns, least, strict=True):
            column.width = max(width, 1)
    console.print(table)
