"""Pages: every text stays text, the Markdown beside them, numbers on axes, and the limit of their sound."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from jinja2 import Environment, FileSystemLoader, UndefinedError

from megatron_lst.pages import (
    Bar,
    Bars,
    Chart,
    Charts,
    Grid,
    GridPatch,
    Listing,
    Page,
    Paragraph,
    Player,
    Players,
    Section,
    Series,
    Sound,
    Sounds,
    Span,
    Table,
    Track,
    histogram,
    markdown,
    render,
)
from megatron_lst.pages.charts import shown, thinned, ticks
from tests.support.reported import IMAGE, SCRIPT

SOUND = Sound("data:audio/ogg;base64,AAAA", 1.0, (0.5, 1.0))


def page_of(text: str) -> Page:
    """A page that has `text` wherever a page may have one."""
    spans = [Span(0, 0.5, text), Span(0.5, 1, text, "silence")]
    player = Player(text, text, text, text, SOUND, spans, [Track(text, spans)], 1.0, (0.5, 1.0))
    silent = Player(text, text, text, text)
    chart = Chart(text, text, text, [Series(text, 0, [(0, 1), (1, 2)]), Series(text, 1, [(0, 1)], shape="ring")])
    marked = Chart(text, text, bars=[(0, 1, 2)], mark=(0.5, text))
    blocks = [
        Paragraph(text, warning=True), Table([text], [[text]], text), Listing(text, text), Charts([chart, marked]),
        Bars(text, [text], [Bar(text, [(text, 3)])]), player, Players(text, [silent]),
        Grid(text, [GridPatch(["text"], text, True, text)]),
    ]  # fmt: skip
    return Page(text, text, [(text, text)], [text], [Section(text, blocks)], text)


class Elements(HTMLParser):
    """Counts tags, and handlers of events in attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def test_a_hostile_text_stays_text_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Elements(render.html(page_of("harmless")))
    for text in (SCRIPT, IMAGE, "' onclick='alert(1)", "&lt;b&gt;</title></style><b>"):
        found = Elements(render.html(page_of(text)))
        assert found.tags == harmless.tags
        assert found.handlers == []
    # What does not escape is seen by the same comparison.
    careless = Environment(loader=FileSystemLoader(render._TEMPLATES), autoescape=False)
    monkeypatch.setattr(render, "_environment", lambda: careless)
    assert Elements(render.html(page_of(SCRIPT))).tags["script"] > harmless.tags["script"] == 1
    assert Elements(render.html(page_of(IMAGE))).handlers


def test_a_page_needs_nothing_else() -> None:
    page = render.html(page_of("text"))
    assert set(re.findall(r"""(?:src|href)=["']?([^"'# >]*)""", page)) <= {"", SOUND.uri}
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_name_that_a_template_does_not_have_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render._environment().from_string("{{ blocck.text }}").render(block=Paragraph("a"))


def test_markdown_has_texts_and_tables(tmp_path: Path) -> None:
    table = Table(["name", "loss"], [["a|b", "1.5"], ["<c>", "-"]])
    sections = [Section("One", [Paragraph("Text.", warning=True), table]), Section("Two", [Charts([])])]
    page = Page("Title", "sub", [("3", "things")], ["The end."], sections)
    assert markdown(page).splitlines() == [
        "# Title", "", "sub", "", "- things: 3", "", "**Missing: The end.**", "", "## One", "", "**Text.**", "",
        "| name | loss |", "| --- | ---: |", "| a\\|b | 1.5 |", "| &lt;c> | - |",
    ]  # fmt: skip


def test_sound_is_cut_and_has_a_limit() -> None:
    sounds, rate = Sounds(most=60_000), 16000
    tone = 0.5 * np.sin(np.arange(20 * rate) * 0.2)
    first = sounds.add(tone, rate)
    assert isinstance(first, Sound)
    assert first.seconds == 12.0
    assert max(first.levels) == 1.0
    heard, at = soundfile.read(io.BytesIO(base64.b64decode(first.uri.partition(",")[2])))
    assert at == rate
    assert len(heard) == 12 * rate
    assert np.abs(heard - tone[: len(heard)]).mean() < 0.05
    clips = [sounds.add(tone, rate) for _ in range(5)]
    refused = [clip for clip in clips if isinstance(clip, str)]
    assert refused
    assert "limit of 0.06 MB" in refused[0]
    assert sounds.characters <= 60_000
    assert f"{len(refused)} clips had no room" in sounds.limit()
    assert sounds.add(np.zeros(0), rate) == "no samples"


def test_what_is_no_sound_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert "a.wav cannot be read" in str(Sounds().read(tmp_path / "a.wav"))


def test_axes_have_round_numbers() -> None:
    assert ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3.1, 4.2, 5) == [-2.0, 0.0, 2.0, 4.0]
    assert [shown(v) for v in (0.25, 5000.0, 20_000, 2.5e6, 3e9)] == ["0.25", "5000", "20k", "2.5M", "3B"]
    points = [(float(i), float(i)) for i in range(10_000)]
    assert len(thinned(points)) == 400
    assert thinned(points)[0] == (12.0, 12.0)


def test_a_chart_lies_within_its_drawing() -> None:
    chart = Chart("t", "x", series=[Series("a", 0, [(i, 1000.0 if i < 2 else 5 - i / 100) for i in range(300)])])
    drawing = chart.draw()
    numbers = [float(n) for n in re.findall(r"[\d.]+", drawing.series[0][1])]
    assert 52 <= min(numbers[::2]) <= max(numbers[::2]) <= 388
    assert 30 <= min(numbers[1::2]) <= max(numbers[1::2]) <= 206
    assert max(numbers[1::2]) - min(numbers[1::2]) > 150  # two wild steps do not flatten the rest
    bars = histogram(np.array([1.0, 1.0, 2.0]), [0.5, 1.5, 2.5], "t", "x")
    assert [bar[2] for bar in bars.bars] == [2, 1]
    assert histogram(np.zeros(0), 3, "t", "x").empty
