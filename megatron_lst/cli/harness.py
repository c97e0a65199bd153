"""`lst eval harness`: text tasks of lm-eval on an exported model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from megatron_lst.inference import LatentSpeechTextModel


def harness(
    export: Annotated[Path, typer.Argument(help="An exported model")],
    task: Annotated[list[str], typer.Option(help="A task of lm-eval, such as hellaswag; may be repeated")],
    tasks_from: Annotated[Path | None, typer.Option(help="Folder of task YAML files of your own")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples before each question; default: the task's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First documents only")] = None,
    original: Annotated[
        Path | None, typer.Option(help="The language model of a warm start: its figures on the same tasks")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for lm_eval.json; default: EXPORT/eval")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Default: the one that the export names")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    units: Annotated[int | None, typer.Option(min=2, help="Longest context; default: what it was trained on")] = None,
) -> None:
    """Run text tasks (T->T) of lm-eval; writes lm_eval.json and prints lm-eval's own table."""
    import json

    from megatron_lst.cli import encoders
    from megatron_lst.errors import UserError
    from megatron_lst.evaluation.harness import TextScorer, harness_model, require_harness
    from megatron_lst.evaluation.report import free_stem, point_to
    from megatron_lst.evaluation.text import Original
    from megatron_lst.evaluation.text_tasks import task_manager
    from megatron_lst.files import require_writable, write_text
    from megatron_lst.inference import load_export

    target = out or export / "eval"
    require_writable(target, "results")
    opened = load_export(export)
    spec = encoders.require_tokenizer(opened, tokenizer)
    encode, _ = encoders.text_encoder(spec)
    decode, room = encoders.text_decoder(spec), units or opened.units or 4096
    require_harness()
    import lm_eval
    from lm_eval.utils import make_table

    manager = task_manager(task, None if tasks_from is None else str(tasks_from))

    def evaluate(model: "LatentSpeechTextModel") -> dict[str, Any]:
        try:
            return lm_eval.simple_evaluate(  # type: ignore[no-any-return]
                model=harness_model(TextScorer(model, encode, decode, room)),
                tasks=task, num_fewshot=shots, limit=limit, task_manager=manager,
            )  # fmt: skip
        except ConnectionError as error:
            raise UserError(f"lm-eval cannot get the documents of {', '.join(task)}: {error}") from None

    results = evaluate(opened.model(device=device))
    print(make_table(results))  # before it is written: a full disk costs the file
    if original is not None:
        results["original"] = evaluate(Original(original, opened.vocabulary, room, device).model)
        print(f"{original}:\n{make_table(results['original'])}")
    stem = free_stem(target, "lm_eval")
    try:
        write_text(target / f"{stem}.json", json.dumps(results, indent=1, default=str) + "\n")
        point_to(target / "lm_eval.json", f"{stem}.json")
    except OSError as error:
        raise UserError(f"{target}: the results above cannot be written ({error.strerror})") from None
    print(target / f"{stem}.json")
