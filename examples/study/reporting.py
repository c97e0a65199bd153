"""Writes what a study found: study.md, study.json and curves.png in its folder."""

from pathlib import Path

from examples.study.arms import StudyPlan, plain
from examples.study.figure import draw
from examples.study.summary import CAVEATS, Results, markdown, summarise
from megatron_lst.files import write_json, write_text


def report(plan: StudyPlan, results: Results, folder: Path) -> str:
    """Write the three files. Returns the page."""
    summary = summarise(results)
    page = markdown(summary, plain(plan))
    write_json(folder / "study.json", {"plan": plain(plan), "arms": summary, "caveats": CAVEATS})
    write_text(folder / "study.md", page)
    draw(results, folder / "curves.png")
    return page
