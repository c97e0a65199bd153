"""`lst export`: a run's checkpoint as a folder that needs no Megatron."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/demo")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist, or be empty")],
    step: Annotated[int | None, typer.Option(min=0, help="Checkpoint of this step; default: the newest")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    shard_size: Annotated[str, typer.Option(help="Largest file of weights, such as 5GB")] = "5GB",
    results: Annotated[Path | None, typer.Option(help="Folder of `lst eval` results for the model card")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer's file, where the run does not keep it")] = None,
    codebook: Annotated[str | None, typer.Option(help="The codebook's file, where the run does not keep it")] = None,
    units_model: Annotated[
        Path | None, typer.Option(help="Folder of the units' HuBERT or Whisper, to go along")
    ] = None,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Without tokenizer and codebook")] = False,
) -> None:
    """Write weights, configuration, tokenizer, codebook and a model card: a folder that needs nothing else."""
    import os
    import subprocess

    from megatron_lst import __version__
    from megatron_lst.cli.models import is_run, open_engine
    from megatron_lst.cli.self_contained import find_companions
    from megatron_lst.config.load import load_run
    from megatron_lst.errors import UserError
    from megatron_lst.inference.export import DTYPES, claim_folder, write_export

    if not is_run(run):
        raise UserError(f"{run}: not a run folder (no config.yaml)")
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    metadata: dict[str, object] = {}
    if results is not None:
        page = results / "results.md"
        if not page.is_file():
            raise UserError(f"{results}: no results.md; `lst eval` writes it")
        metadata["results"] = page.read_text()
    companions = find_companions(run, load_run(run), tokenizer, codebook, units_model, weights_only)
    if os.environ.get("RANK", "0") == "0":  # the one rank that writes
        claim_folder(out).rmdir()  # tried before the work; `write_export` makes it again
    engine, config, found = open_engine(run, step)
    try:
        weights = engine.export_weights()
        if weights is None:
            return
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        metadata |= {"step": found, "version": __version__, "commit": commit or None, **companions.metadata}
        notes: list[str] = []
        write_export(
            out, weights, config, metadata, dtype=dtype, shard_size=shard_size,
            beside=lambda folder: notes.extend(companions.write(folder, config.vocabulary)),
        )  # fmt: skip
        count = sum(w.numel() for w in weights.values())
        print(f"{out}: {config.model.kind} of step {found}, {count / 1e6:,.2f}M parameters, {dtype}")
        for note in notes:
            print(f"  note: {note}")
    finally:
        engine.close()
