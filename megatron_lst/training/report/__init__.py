"""The page of a run: RUN/report.html, to look at and listen to. Of a run that goes on it shows what there is."""

from collections.abc import Sequence
from pathlib import Path

from megatron_lst.config.load import load_run
from megatron_lst.config.schema import Config
from megatron_lst.errors import LstError, UserError
from megatron_lst.pages import Page, Section, Sounds, write_page
from megatron_lst.training.report.ability import ability_cells, ability_rows, text_ability
from megatron_lst.training.report.curves import Records, comparison, curves, held_out_table, histories, summarise
from megatron_lst.training.report.data import held_out_speech, row_picture
from megatron_lst.training.report.tables import checkpoints, configuration, evaluations, events, facts, samples
from megatron_lst.training.resilience import outcome

__all__ = ["ability_cells", "ability_rows", "histories", "summarise", "write_report"]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of the first run; the others are drawn beside it.

    Args:
        out: the HTML file; default: RUN/report.html.

    Raises:
        UserError: a folder that is no run; names it.
    """
    for folder in runs:
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: not a run folder (no config.yaml)")
    run, sounds, steps = runs[0], Sounds(), histories(runs)
    mine, config = next(iter(steps.values())), _config(run)
    sections = [
        Section("Curves", [*comparison(steps), *curves(steps), *held_out_table(mine)]),
        Section("Text ability", text_ability(run, mine)),
        Section("Evaluation", evaluations(runs)),
        Section("Samples", samples(run, sounds)),
        Section("Held-out speech and its patches", held_out_speech(run, config, sounds)),
        Section("A row", row_picture(config)),
        Section("Configuration and data", configuration(run)),
        Section("Checkpoints", checkpoints(run)),
        Section("Events", events(run)),
    ]
    beside = f", beside {', '.join(str(other) for other in runs[1:])}" if len(runs) > 1 else ""
    shown = [section for section in sections if section.blocks]
    page = Page("Training run", f"{run}{beside}", facts(mine), _missing(run, mine, config), shown, sounds.limit())
    return write_page(out or run / "report.html", page)


def _config(run: Path) -> Config | str:
    """The run's configuration, or why it cannot be used here."""
    try:
        return load_run(run)
    except LstError as error:
        return str(error)


def _missing(run: Path, records: Records, config: Config | str) -> list[str]:
    """What a reader of the page has to know that the run lacks."""
    found, said = list[str](), outcome.read(run)
    if isinstance(config, str):
        found.append(f"The configuration cannot be read: {config}")
    step = records[-1]["step"] if records else 0
    of = f" of {config.training.steps:,}" if isinstance(config, Config) else ""
    if said is None:
        found.append(f"The run goes on, or was killed without a word: step {step:,}{of}.")
    elif said["state"] == "failed":
        found.append(f"The run failed in step {said.get('step')}: {said.get('error')}")
    elif said["state"] != "finished":
        found.append(f"The run was saved in step {said.get('step')}{of}; the same command goes on with it.")
    if not records:
        found.append("No step is finished: there are no curves (no metrics.jsonl).")
    return found
