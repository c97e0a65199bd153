"""`lst eval harness`: text tasks of lm-eval on an exported model."""

from pathlib import Path
from typing import Annotated

import typer


def harness(
    export: Annotated[Path, typer.Argument(help="An exported model")],
    task: Annotated[list[str], typer.Option(help="A task of lm-eval, such as hellaswag; may be repeated")],
    tasks_from: Annotated[Path | None, typer.Option(help="Folder of task YAML files of your own")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples before each question; default: the task's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First documents only")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for lm_eval.json; default: EXPORT/eval")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Default: the one that the export names")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    units: Annotated[int | None, typer.Option(min=2, help="Longest context; default: what it was trained on")] = None,
) -> None:
    """Run text tasks (T->T) of lm-eval; writes lm_eval.json and prints lm-eval's own table."""
    import json

    from megatron_lst.cli import encoders
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.harness import make_harness_model
    from megatron_lst.evaluation.report import free_stem, point_to
    from megatron_lst.files import require_writable, write_text
    from megatron_lst.inference import load_export

    target = out or export / "eval"
    require_writable(target, "results")
    opened = load_export(export)
    spec = encoders.require_tokenizer(opened, tokenizer)
    encode, _ = encoders.text_encoder(spec)
    model = make_harness_model(export, encode, encoders.text_decoder(spec), device, units or opened.units or 4096)
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    folder = None if tasks_from is None else str(tasks_from)
    manager = TaskManager(include_path=folder)
    if unknown := [name for name in task if not manager.match_tasks([name]) and not Path(name).exists()]:
        raise UserError(f"--task {unknown[0]!r}: lm-eval does not know it; `lm_eval ls tasks` lists what it knows")
    try:
        results = lm_eval.simple_evaluate(model=model, tasks=task, num_fewshot=shots, limit=limit, task_manager=manager)
    except ConnectionError as error:
        raise UserError(f"lm-eval cannot get the documents of {', '.join(task)}: {error}") from None
    print(make_table(results))  # before it is written: a full disk costs the file
    stem = free_stem(target, "lm_eval")
    try:
        write_text(target / f"{stem}.json", json.dumps(results, indent=1, default=str) + "\n")
        point_to(target / "lm_eval.json", f"{stem}.json")
    except OSError as error:
        raise UserError(f"{target}: the results above cannot be written ({error.strerror})") from None
    print(target / f"{stem}.json")
