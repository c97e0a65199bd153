"""`lst eval harness`: text tasks of lm-eval on an exported model."""

from pathlib import Path
from typing import Annotated

import typer


def harness(
    export: Annotated[Path, typer.Argument(help="An exported model")],
    task: Annotated[list[str], typer.Option(help="A task of lm-eval, such as hellaswag; may be repeated")],
    tasks_from: Annotated[Path | None, typer.Option(help="Folder of task YAML files of your own")] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before each question; default: the task's")] = None,
    limit: Annotated[int | None, typer.Option(help="First documents only")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for lm_eval.json; default: EXPORT/eval")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Default: the one that the export names")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    units: Annotated[int, typer.Option(help="Longest context")] = 4096,
) -> None:
    """Run text tasks (T->T) of lm-eval; writes lm_eval.json and prints lm-eval's own table."""
    import json

    from megatron_lst.cli import encoders
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.harness import make_harness_model
    from megatron_lst.inference import load_export

    opened = load_export(export)
    spec = encoders.require_tokenizer(opened, tokenizer)
    encode, _ = encoders.text_encoder(spec)
    model = make_harness_model(export, encode, encoders.text_decoder(spec), device, units)
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
    target = out or export / "eval"
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / "lm_eval.json.tmp"
    temporary.write_text(json.dumps(results, indent=1, default=str) + "\n")
    temporary.rename(target / "lm_eval.json")
    print(make_table(results))
    print(target / "lm_eval.json")
