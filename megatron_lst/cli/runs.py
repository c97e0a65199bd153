"""`lst checkpoint` and `lst report`: look at what runs have left."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_lst.cli.options import JSON, answering

checkpoint_app = typer.Typer(no_args_is_help=True, help="List, verify and keep the checkpoints of a run.")
RUN = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo")]


@checkpoint_app.command("list")
def list_checkpoints(run: RUN, as_json: JSON = False) -> None:
    """The complete checkpoints of a run, with size, and those that are kept for good or have the least loss."""
    from megatron_lst.errors import UserError
    from megatron_lst.training.checkpoint import complete_checkpoints, newest_checkpoint
    from megatron_lst.training.checkpoint.retention import best_checkpoint

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run folder (no config.yaml)")
    with answering(as_json) as answer:
        best, listed = best_checkpoint(run), []
        for found in complete_checkpoints(run):
            loss = found.heldout_loss()
            notes = [f"held-out loss {loss:.4f}" + (", the least" if found == best else "")] if loss is not None else []
            notes += ["kept"] if found.kept else []
            print("  ".join([str(found.path), f"{found.size() / 1e6:.1f} MB", *notes]))
            of_file = {"path": found.path, "step": found.step, "bytes": found.size(), "heldout_loss": loss}
            listed.append({**of_file, "least": found == best, "kept": found.kept})
        if newest_checkpoint(run, print) is None:
            print(f"{run}: no complete checkpoint")
        answer({"run": run, "checkpoints": listed})


@checkpoint_app.command("keep")
def keep_checkpoint(
    run: RUN,
    step: Annotated[int, typer.Argument(min=0, help="Which checkpoint: its step")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the run remove it again")] = False,
    as_json: JSON = False,
) -> None:
    """Keep one for good, whatever `checkpoint.keep` says; also while the run trains."""
    from megatron_lst.training.checkpoint.retention import keep, release

    with answering(as_json) as answer:
        found = release(run, step) if undo else keep(run, step)
        print(f"{found.path}: {'no longer kept' if undo else 'kept'}")
        answer({"path": found.path, "step": found.step, "kept": not undo})


@checkpoint_app.command("verify")
def verify_checkpoints(
    run: RUN,
    step: Annotated[int | None, typer.Option(min=0, help="Only this step's")] = None,
    as_json: JSON = False,
) -> None:
    """Compare every file's size and hash with what was written. Exit code 3 where one differs."""
    from megatron_lst.errors import DamagedDataError
    from megatron_lst.training.checkpoint import complete_checkpoints, find_checkpoint

    with answering(as_json) as answer:
        checkpoints = complete_checkpoints(run) if step is None else [find_checkpoint(run, step)]
        if not checkpoints:
            find_checkpoint(run)
        problems, looked = 0, []
        for found in checkpoints:
            damaged, files = found.damaged_files(), len(found.manifest()["files"])
            problems += len(damaged)
            print(f"{found.path}: {'good' if not damaged else 'DAMAGED'}, {files} files")
            for line in damaged:
                print(f"  {line}")
            looked.append({"path": found.path, "step": found.step, "files": files, "damaged": damaged})
        answer({"run": run, "checkpoints": looked})
        if problems:
            raise DamagedDataError(f"{problems} damaged files in {run}; an older checkpoint may be whole")


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; further ones are drawn beside it")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first run")] = None,
    as_json: JSON = False,
) -> None:
    """A table, and a page to look at and listen to: curves, results, samples, a row, events; of unfinished runs too."""
    from megatron_lst.cli.tables import narrow_table, print_table
    from megatron_lst.training.report import ability_cells, ability_rows, histories, summarise, write_report
    from megatron_lst.training.report.tables import vocabulary_of

    with answering(as_json) as answer:
        page, steps = write_report(runs, out), histories(runs)
        rows = [summarise(name, records) for name, records in steps.items() if records]
        if rows:
            columns = (key.replace("_", " ") for key in rows[0])
            table = narrow_table("runs (losses: mean of the last tenth)", columns, left=["run"])
            for row in rows:
                cells = ("-" if v is None else f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values())
                table.add_row(*cells)
            print_table(table)
        ability = {}
        for run, records in zip(runs, steps.values(), strict=False):
            if measured := ability_rows(run, records):
                ability[str(run)] = [{"at": at, "units": units, "measures": found} for at, units, found in measured]
                head, lines = ability_cells(measured)
                table = narrow_table(f"text ability of {run.name}", head, left=[""])
                for line in lines:
                    table.add_row(*line)
                print_table(table)
            print(f"{run}: {vocabulary_of(run)}" if records else f"{run}: no step is finished")
        print(page)
        answer({"page": page, "runs": rows, "text_ability": ability})
