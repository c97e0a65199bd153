"""A `Page` as one HTML file that needs nothing else, and as Markdown."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from megatron_lst.files import write_text
from megatron_lst.pages.blocks import Block, Listing, Page, Paragraph, Table

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    """Escapes every text that is put in; a name that a template does not have is an error."""
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def html(page: Page) -> str:
    """The page; its policy lets a browser load nothing, and run no other script than the page's own."""
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = _environment().get_template("page.html")
    return template.render(page=page, style=Markup(style), script=Markup(script), script_hash=digest)


def write_page(path: Path, page: Page) -> Path:
    """Write the HTML file."""
    write_text(path, html(page))
    return path


def markdown(page: Page) -> str:
    """The same for a terminal: texts and tables; pictures and sound are left out."""
    lines = [f"# {page.title}", "", page.subtitle, ""]
    lines += [f"- {what}: {value}" for value, what in page.facts] + [""] * bool(page.facts)
    lines += [f"**Missing: {_inline(what)}**\n" for what in page.missing]
    for section in page.sections:
        shown = [line for block in section.blocks for line in _markdown(block)]
        if shown:
            lines += [f"## {_inline(section.title)}", "", *shown]
    return "\n".join(lines)


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _markdown(block: Block) -> list[str]:
    match block:
        case Paragraph(text, warning):
            return [f"**{_inline(text)}**" if warning else _inline(text), ""]
        case Table(head, rows):
            if not rows:
                return []
            marks = ["---:" if right else "---" for right in block.numeric]
            cells = [list(map(_inline, row)) for row in rows]
            return ["| " + " | ".join(row) + " |" for row in [list(head), marks, *cells]] + [""]
        case Listing(title, text):
            return [f"{title}:", "", *(f"    {line}" for line in text.splitlines()), ""]
    return []
