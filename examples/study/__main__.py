"""`make study` (`python -m examples.study`): baseline, static and curriculum patching on an invented language."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_lst.errors import LstError

QUICK_BUDGET = 40_000


def study(
    out: Annotated[
        Path | None, typer.Option(help="Folder of everything; runs/study, with --quick runs/study-quick")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds of every arm; at least 3 for an interval worth its name")
    ] = 3,
    units_budget: Annotated[int | None, typer.Option(min=1, help="Units that each arm trains on")] = None,
    quick: Annotated[bool, typer.Option(help="An eighth of the budget: does it run?")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time, one core each; all cores by default")] = None,
) -> None:
    """Base, static and curriculum under an equal budget of units, base under equal FLOPs, several seeds, on CPU.

    Goes on where it was stopped. Prints what was measured, with intervals, and what that can and cannot show.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from examples.study.arms import StudyPlan
    from examples.study.reporting import report
    from examples.study.running import run_study
    from megatron_lst.machine import usable_cores

    budget = units_budget or (QUICK_BUDGET if quick else StudyPlan.units_budget)
    plan = StudyPlan(seeds=seeds, units_budget=budget)
    folder = out or Path("runs/study-quick" if quick else "runs/study")
    results = run_study(plan, folder, jobs or usable_cores())
    page = report(plan, results, folder)
    Console().print(Markdown(page))
    for what, name in (("tables", "study.md"), ("all figures", "study.json"), ("emergence curves", "curves.png")):
        print(f"{what:18s} {folder / name}")


if __name__ == "__main__":
    try:
        typer.run(study)
    except LstError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
