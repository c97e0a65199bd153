"""`lst eval speed`: generation of an LST and its unpatched baseline side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_lst.cli.generate import FIXED_SHAPES
from megatron_lst.cli.options import JSON, answering


def speed(
    lst: Annotated[Path, typer.Argument(help="Configuration of an LST")],
    baseline: Annotated[Path, typer.Argument(help="Configuration of its unpatched baseline")],
    prompt: Annotated[int, typer.Option(min=1, help="Speech tokens of each prompt")] = 250,
    tokens: Annotated[int, typer.Option(min=1, help="Speech tokens of each response")] = 250,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    fixed_shapes: FIXED_SHAPES = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures, under `lst` and `baseline`")] = None,
    as_json: JSON = False,
) -> None:
    """Generation with random weights, side by side: tokens a second, global steps, cache memory."""
    from megatron_lst.config.load import load_config
    from megatron_lst.evaluation.speed import measure, random_model, table
    from megatron_lst.files import require_writable, write_json
    from megatron_lst.inference.export import DTYPES

    if out is not None:
        require_writable(out.parent, "--out")
    with answering(as_json) as answer:
        found = []
        for path in (lst, baseline):
            model = random_model(load_config(path), device, DTYPES[dtype])
            found.append(measure(model, prompt, tokens, batch, fixed_shapes=fixed_shapes))
            del model
        what = f"{batch} prompts of {prompt} speech tokens, {tokens} tokens each"
        print(f"{lst} and {baseline}, {dtype} on {device}: {what}")
        print(table(*found))
        figures = {name: asdict(one) for name, one in zip(("lst", "baseline"), found, strict=True)}
        answer(figures)
        if out is not None:
            write_json(out, figures)
