"""`lst checkpoint` and `lst report`: look at what runs have left."""

from pathlib import Path
from typing import Annotated

import typer

checkpoint_app = typer.Typer(no_args_is_help=True, help="List, verify and keep the checkpoints of a run.")
RUN = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo")]


@checkpoint_app.command("list")
def list_checkpoints(run: RUN) -> None:
    """The complete checkpoints of a run, with size, and those that are kept for good or have the least loss."""
    from megatron_lst.errors import UserError
    from megatron_lst.training.checkpoint import complete_checkpoints, newest_checkpoint
    from megatron_lst.training.checkpoint.retention import best_checkpoint

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml)")
    best = best_checkpoint(run)
    for found in complete_checkpoints(run):
        loss = found.heldout_loss()
        notes = [f"held-out loss {loss:.4f}" + (", the least" if found == best else "")] if loss is not None else []
        notes += ["kept"] if found.kept else []
        print("  ".join([str(found.path), f"{found.size() / 1e6:.1f} MB", *notes]))
    if newest_checkpoint(run, print) is None:
        print(f"{run}: no complete checkpoint")


@checkpoint_app.command("keep")
def keep_checkpoint(
    run: RUN,
    step: Annotated[int, typer.Argument(min=0, help="Which checkpoint: its step")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the run remove it again")] = False,
) -> None:
    """Keep one for good, whatever `checkpoint.keep` says; also while the run trains."""
    from megatron_lst.training.checkpoint.retention import keep, release

    found = release(run, step) if undo else keep(run, step)
    print(f"{found.path}: {'no longer kept' if undo else 'kept'}")


@checkpoint_app.command("verify")
def verify_checkpoints(
    run: RUN, step: Annotated[int | None, typer.Option(min=0, help="Only this step's")] = None
) -> None:
    """Compare every file's size and hash with what was written. Exit code 3 where one differs."""
    from megatron_lst.errors import DamagedDataError
    from megatron_lst.training.checkpoint import complete_checkpoints, find_checkpoint

    checkpoints = complete_checkpoints(run) if step is None else [find_checkpoint(run, step)]
    if not checkpoints:
        find_checkpoint(run)
    problems = 0
    for found in checkpoints:
        damaged = found.damaged_files()
        problems += len(damaged)
        print(f"{found.path}: {'good' if not damaged else 'DAMAGED'}, {len(found.manifest()['files'])} files")
        for line in damaged:
            print(f"  {line}")
    if problems:
        raise DamagedDataError(f"{problems} damaged files in {run}; an older checkpoint may be whole")


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; further ones are drawn beside it")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first run")] = None,
) -> None:
    """A table, and a page to look at and listen to: curves, results, samples, a row, events; of unfinished runs too."""
    from rich.console import Console

    from megatron_lst.cli.tables import narrow_table
    from megatron_lst.training.report import histories, summarise, write_report
    from megatron_lst.training.report.tables import vocabulary_of

    page, steps = write_report(runs, out), histories(runs)
    rows = [summarise(name, records) for name, records in steps.items() if records]
    if rows:
        columns = (key.replace("_", " ") for key in rows[0])
        table = narrow_table("runs (losses: mean of the last tenth)", columns, left=["run"])
        for row in rows:
            cells = ("-" if v is None else f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values())
            table.add_row(*cells)
        Console().print(table)
    for run, records in zip(runs, steps.values(), strict=False):
        print(f"{run}: {vocabulary_of(run)}" if records else f"{run}: no step is finished")
    print(page)
