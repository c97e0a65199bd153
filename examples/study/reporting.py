"""Writes what a study found: study.md, study.json and curves.png in its folder."""

from pathlib import Path

from examples.study.arms import StudyPlan, plain
from examples.study.figure import draw
from examples.study.measure import ceiling, make_items, read_held_out
from examples.study.summary import CAVEATS, Results, markdown, summarise
from megatron_lst.documents.shards import ShardSet
from megatron_lst.files import write_json, write_text
from megatron_lst.patching.strategies import static_patcher


def report(plan: StudyPlan, results: Results, folder: Path) -> str:
    """Write the three files. Returns the page."""
    held_out = read_held_out(ShardSet.open(folder / "data" / "held-out"))
    top = ceiling(plan.corpus.world, make_items(plan, held_out, "T->T", static_patcher(1)))
    summary = summarise(results)
    page = markdown(summary, plain(plan), top)
    write_json(folder / "study.json", {"plan": plain(plan), "ceiling": top, "arms": summary, "caveats": CAVEATS})
    write_text(folder / "study.md", page)
    draw(results, folder / "curves.png")
    return page
