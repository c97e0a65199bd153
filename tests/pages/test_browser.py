"""The pages in a real browser, headless Chromium: no error, no request, no overflow, contrast, and a player that moves.

Debian's package is installed where that is possible; elsewhere these tests are skipped with a sentence.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.training.report import write_report
from tests.support.browser import PROGRAM, Browser
from tests.support.debian import missing_programs
from tests.support.reported import prepared, run_folder

pytestmark = pytest.mark.slow

CONTRAST = """(() => {
  const parse = (text) => { const p = text.match(/[\\d.]+/g).map(Number); return [p[0], p[1], p[2], p[3] ?? 1]; };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    const over = (under, top) => under.map((v, i) => top[i] * top[3] + v * (1 - top[3]));
    return layers.reverse().reduce(over, [255, 255, 255]);
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element instanceof SVGElement ? style.fill : style.color)), paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    const where = element.tagName + "." + element.getAttribute("class");
    found.push({ ratio, where, text: texts.currentNode.data.trim() });
  }
  return { count: found.length, least: found.sort((a, b) => a.ratio - b.ratio)[0] };
})()"""
NOW = "[...document.querySelectorAll('.player:has(.words button) .now')]"
FIRST = "document.querySelector('.player:has(.words button) {}')"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if not shutil.which(PROGRAM) and (reason := missing_programs({PROGRAM: "chromium"})):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("pages")
    config = prepared(folder / "prep")
    return {"preparation": Path(config.out) / "report.html", "run": write_report([run_folder(folder / "train")])}


@pytest.fixture(scope="module")
def shared(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared: Browser) -> Browser:
    shared.errors.clear()
    shared.requests.clear()
    return shared


def spoilt(browser: Browser) -> list[str]:
    """What is wrong with the page that is shown."""
    width = browser.run("innerWidth")
    faults = [f"error: {error}" for error in browser.errors] + [f"request: {url}" for url in browser.requests]
    if (wide := browser.run("document.documentElement.scrollWidth")) > width:
        faults.append(f"scrolls to the side: {wide} > {width}")
    measured = browser.run(CONTRAST)
    assert measured["count"] > 50
    if measured["least"]["ratio"] < 4.5:
        faults.append(f"contrast: {measured['least']}")
    return faults


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["preparation", "run"])
def test_a_page_is_whole(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.show(width, dark=dark)
    browser.open(pages[name])
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert spoilt(browser) == []
    seek(browser, 0.8)
    assert now(browser)
    assert spoilt(browser) == []
    assert browser.run("innerWidth") == width
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("document.querySelector('.muted').style.color = '#999'", "contrast"),
        ("document.querySelector('main').style.width = '2000px'", "scrolls"),
        ("setTimeout(() => { throw new Error('thrown'); })", "error: Error: thrown"),
        ("new Image().src = 'https://example.invalid/a.png'", "error"),
        ("fetch('https://example.invalid/').catch(() => {})", "error"),
    ],
)
def test_what_is_wrong_is_seen(browser: Browser, pages: dict[str, Path], spoil: str, fault: str) -> None:
    browser.show(360)
    browser.open(pages["preparation"])
    assert spoilt(browser) == []
    browser.run(f"void ({spoil})")
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert [line for line in spoilt(browser) if line.startswith(fault)]


def test_hostile_texts_do_nothing(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.open(page)
        assert browser.run("document.querySelectorAll('script').length") == 1
        assert browser.run("document.querySelectorAll('img').length") == 0
        assert "<script>alert" in browser.run("document.body.innerText")


def seek(browser: Browser, seconds: float) -> None:
    browser.run(
        f"new Promise((done) => {{ const audio = {FIRST.format('audio')};"
        f"audio.addEventListener('seeked', () => done(), {{ once: true }}); audio.currentTime = {seconds}; }})"
    )


def now(browser: Browser) -> list[dict[str, Any]]:
    """The words and patches that are marked."""
    found: list[dict[str, Any]] = browser.run(
        f"{NOW}.map((e) => ({{ text: e.textContent, kind: e.className, begin: +e.dataset.begin, "
        f"end: +e.dataset.end }}))"
    )
    return found


def test_the_playing_position_moves_over_words_and_patches(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(1280)
    browser.open(pages["preparation"])
    assert now(browser) == []
    words = browser.run(
        f"[...{FIRST.format('.words')}.children].map((e) => [e.textContent, +e.dataset.begin, +e.dataset.end])"
    )
    assert len(words) > 10
    places = []
    for text, begin, end in (words[1], words[5], words[9]):
        seek(browser, (begin + end) / 2)
        marked = now(browser)
        assert len(marked) == 3  # the word, its aligned patch, a static patch
        assert all(part["begin"] <= (begin + end) / 2 < part["end"] for part in marked)
        assert [part["text"] for part in marked[:2]] == [text, text]
        assert marked[2]["kind"].startswith("span patch")
        assert browser.run("[...document.querySelectorAll('[aria-current=true]')].map((e) => e.textContent)") == [text]
        places.append(browser.run(f"parseFloat({FIRST.format('.playhead')}.style.left)"))
    assert places == sorted(set(places))
    length = browser.run(f"{FIRST.format('audio')}.duration")
    assert 5 < length <= 12.1


def test_a_click_on_a_word_plays_from_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["preparation"])
    word = f"{FIRST.format('.words')}.children[4]"
    browser.run(f"{word}.click()")
    begin = browser.run(f"+{word}.dataset.begin")
    browser.run("new Promise((done) => setTimeout(done, 600))")
    at = browser.run(f"{FIRST.format('audio')}.currentTime")
    assert begin < at < begin + 5
    assert now(browser)
    # A second player stops the first.
    browser.run("document.querySelectorAll('.player:has(.words button) .words')[1].children[0].click()")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert browser.run(f"{FIRST.format('audio')}.paused") is True


def test_a_keyboard_is_enough(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["preparation"])
    words = f"{FIRST.format('.words')}.children"
    browser.run(f"{words}[0].focus()")
    for _ in range(3):
        browser.press("ArrowRight", 39)
    browser.press("ArrowLeft", 37)
    assert browser.run(f"document.activeElement === {words}[2]") is True
    assert browser.run(f"[...{words}].filter((word) => word.tabIndex === 0).length") == 1
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter", 13)
    begin = browser.run(f"+{words}[2].dataset.begin")
    assert begin <= browser.run(f"{FIRST.format('audio')}.currentTime") < begin + 5
    assert browser.run(f"{FIRST.format('audio')}.controls") is True


def test_on_paper(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.show(1280, dark=True, media="print")
        browser.open(page)
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert browser.run(CONTRAST)["least"]["ratio"] >= 4.5
        printed = browser.pdf()
        assert printed.startswith(b"%PDF")
        assert printed.count(b"/Type /Page\n") > 1
