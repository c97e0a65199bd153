"""`make study` (`python -m examples.study`): baseline, static and curriculum patching on real audio, several seeds."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_lst.errors import LstError


def study(
    out: Annotated[
        Path | None, typer.Option(help="Folder of everything; runs/study, with --quick runs/study-quick")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of every arm; 5, with --quick 1")] = None,
    units_budget: Annotated[int | None, typer.Option(min=1, help="Units that each arm trains on")] = None,
    quick: Annotated[bool, typer.Option(help="Minutes, on the embedded corpus alone: does it run?")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time, one core each; all cores by default")] = None,
) -> None:
    """Base, static and curriculum under an equal budget of units, base under equal FLOPs, several seeds, on CPU.

    Goes on where it was stopped. Prints what was measured, with intervals, and what that can and cannot show.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from examples.study.arms import QUICK, StudyPlan
    from examples.study.corpus import write_corpus
    from examples.study.reporting import report
    from examples.study.running import run_study, settle
    from megatron_lst.machine import usable_cores

    start = QUICK if quick else StudyPlan()
    plan = dataclasses.replace(start, seeds=seeds or start.seeds, units_budget=units_budget or start.units_budget)
    folder = out or Path("runs/study-quick" if quick else "runs/study")
    settle(plan, folder)
    print(f"study in {folder}: its corpus", flush=True)
    sets = write_corpus(plan.corpus, folder / "data", jobs or usable_cores())
    results = run_study(plan, folder, sets, jobs or usable_cores())
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
