"""Pages for people: one self-contained HTML file each, and the same as Markdown for terminals.

`blocks` says what a page may hold, `charts` draws, `sound` embeds audio, `render` turns a `Page` into HTML (templates/)
or Markdown. What the text is about is the business of who builds the page.
"""

from megatron_lst.pages.blocks import (
    Bar,
    Bars,
    Charts,
    Grid,
    GridPatch,
    Listing,
    Page,
    Paragraph,
    Player,
    Players,
    Section,
    Span,
    Table,
    Track,
)
from megatron_lst.pages.charts import Chart, Series, histogram
from megatron_lst.pages.render import markdown, write_page
from megatron_lst.pages.sound import Sound, Sounds

__all__ = [
    "Bar",
    "Bars",
    "Chart",
    "Charts",
    "Grid",
    "GridPatch",
    "Listing",
    "Page",
    "Paragraph",
    "Player",
    "Players",
    "Section",
    "Series",
    "Sound",
    "Sounds",
    "Span",
    "Table",
    "Track",
    "histogram",
    "markdown",
    "write_page",
]
