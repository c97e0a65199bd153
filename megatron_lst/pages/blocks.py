"""What a page may hold. All texts are plain: whoever renders them escapes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from megatron_lst.pages.charts import Chart
from megatron_lst.pages.sound import Sound

_NUMBER = re.compile(r"^[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?(%|MB|GB))?( \[.*\])?$|^-?$")


@dataclass(frozen=True)
class Paragraph:
    """One paragraph; a warning stands out."""

    template: ClassVar[str] = "paragraph"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; a table that is too wide scrolls inside its box."""

    template: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone, and stand to the right."""
        return [all(_NUMBER.match(row[i]) for row in self.rows) for i in range(len(self.head))]


@dataclass(frozen=True)
class Listing:
    """Text as it is, such as a configuration, folded away."""

    template: ClassVar[str] = "listing"
    title: str
    text: str


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room. Left out of Markdown."""

    template: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of (what, how many) parts; `what` is one of `Bars.parts`."""

    label: str
    parts: Sequence[tuple[str, int]]

    @property
    def total(self) -> int:
        return sum(count for _, count in self.parts)


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, divided. Left out of Markdown.

    Attributes:
        parts: what the bars are divided into; each has a colour, those past the eighth share one.
    """

    template: ClassVar[str] = "bars"
    title: str
    parts: Sequence[str]
    bars: Sequence[Bar]

    @property
    def longest(self) -> int:
        return max((bar.total for bar in self.bars), default=1)


@dataclass(frozen=True)
class Span:
    """A stretch of a recording, in seconds.

    Attributes:
        kind: `word`, `silence` or `patch`: its colour.
    """

    begin: float
    end: float
    label: str = ""
    kind: str = "word"


@dataclass(frozen=True)
class Track:
    """Spans on a time line under a recording."""

    name: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Player:
    """A recording to listen to; its playing position moves over words and tracks, and a click on one of them seeks.
    Left out of Markdown.

    Attributes:
        title, about: over it.
        text: what is said, where there are no `words`.
        sound: None: there is none, and `note` says why.
        words: the text, word by word.
        seconds: length of the time line.
        levels: 0..1, loudness at equal distances along it.
    """

    template: ClassVar[str] = "player"
    title: str
    about: str = ""
    text: str = ""
    note: str = ""
    sound: Sound | None = None
    words: Sequence[Span] = ()
    tracks: Sequence[Track] = ()
    seconds: float = 0.0
    levels: Sequence[float] = ()


@dataclass(frozen=True)
class Players:
    """Several short recordings under a heading, side by side where there is room."""

    template: ClassVar[str] = "players"
    title: str
    players: Sequence[Player]


@dataclass(frozen=True)
class GridPatch:
    """A patch of a row.

    Attributes:
        kinds: `text`, `speech`, `silence`, `marker` or `padding`, one a token.
        label: words that begin in it.
        first: whether a document begins with it.
        about: shown on hovering.
    """

    kinds: Sequence[str]
    label: str = ""
    first: bool = False
    about: str = ""


@dataclass(frozen=True)
class Grid:
    """The picture of a row: patches as boxes of their tokens. Left out of Markdown."""

    template: ClassVar[str] = "grid"
    caption: str
    patches: Sequence[GridPatch]


Block = Paragraph | Table | Listing | Charts | Bars | Player | Players | Grid


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title, subtitle: at the top.
        facts: (value, what it is), in large letters.
        missing: what is not there yet, one sentence each; the page shows the rest.
        footer: small, at the end.
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    sections: Sequence[Section] = ()
    footer: str = ""
