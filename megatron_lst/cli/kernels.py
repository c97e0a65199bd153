"""`lst kernels`: compile the kernels for GPUs that are not here, and time them on the one that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lst_kernels.bench import Setting
    from megatron_lst.config import Config

kernels_app = typer.Typer(no_args_is_help=True, help="Check and benchmark the Triton kernels.")


@kernels_app.command()
def check(
    configs: Annotated[list[str] | None, typer.Argument(help="Configurations; default: the published widths")] = None,
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, sm_100, gfx942; default: all")] = None,
) -> None:
    """Compile every kernel for every target, without a GPU, and check what came out. Exit code 1: one is not right."""
    from lst_kernels.compile_check import PAPER, TARGETS, Shape, report
    from lst_kernels.compile_check import check as compile_all
    from megatron_lst.config import load_config
    from megatron_lst.errors import LstError, UserError

    shapes = []
    for path in configs or ():
        config = load_config(path)
        model, tensor = config.model, config.parallel.tensor
        shapes.append(
            Shape(
                path,
                model.local_hidden,
                model.local_heads,
                model.queries,
                model.heads,
                model.global_kv_heads,
                model.global_head_size,
                model.pooling,
                tensor,
            )
        )
    try:
        rows = compile_all(shapes or PAPER, target or TARGETS)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    print(report(rows))
    if not all(row.ok for row in rows):
        raise LstError("some kernels are not as meant; see the table")


@kernels_app.command()
def bench(
    out: Annotated[Path, typer.Option(help="Folder for the JSON file")] = Path("benchmarks/results"),
) -> None:
    """Time every kernel beside its peers on this machine's GPU, each after its correctness gate. Exit code 1: one of
    them is wrong; the others' figures are written all the same."""
    import json

    from lst_kernels.bench import NoGpu, Setting, record
    from lst_kernels.bench import bench as measure
    from megatron_lst.errors import LstError, UserError
    from megatron_lst.files import write_text

    try:
        found = measure(Setting(), lambda line: print(line, flush=True))
    except NoGpu as error:
        raise UserError(str(error)) from None
    written = record(found)
    device = "".join(c if c.isalnum() else "-" for c in found.machine.name.lower())
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"kernels-{device}-{written['date'][:19].replace(':', '')}.json"
    write_text(file, json.dumps(written, indent=1) + "\n")
    print(file)
    if found.problems:
        raise LstError("not timed: " + "; ".join(found.problems))


@kernels_app.command()
def tune(
    config: Annotated[str | None, typer.Argument(help="A run's configuration; default: the published 1B")] = None,
    document: Annotated[int, typer.Option(min=1, help="Units, and tokens, of every document")] = 1500,
    out: Annotated[Path, typer.Option(help="JSON file; other devices' and head sizes' rows stay")] = Path("tiles.json"),
) -> None:
    """Search this machine's GPU for attention's quickest tiles that pass the check, and time its implementations, with
    the heads that a rank of the configuration has. Launches and engine.attention=auto follow the file where
    LST_KERNELS_TILES names it."""
    from dataclasses import replace

    import torch

    from lst_kernels.backends import triton_version
    from lst_kernels.bench import NoGpu
    from lst_kernels.tune import PUBLISHED, USES, compare, table
    from lst_kernels.tune import tune as search
    from megatron_lst.config import load_config
    from megatron_lst.errors import UserError
    from megatron_lst.files import write_text

    setting, names = replace(PUBLISHED, document_tokens=document), list(USES)
    if config is not None:
        run = load_config(config)
        setting = setting_of(run, document)
        names = names if run.model.kind == "lst" else names[1:]  # a baseline has no local layers
    before = out.read_text(encoding="utf-8") if out.exists() else None
    try:
        table([], "", "", before)  # a file that cannot be continued is found before the search
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{out}: not a file of tiles: {error}; give another --out") from None
    try:
        found = search(setting, lambda line: print(line, flush=True), names=names)
        attention = compare(setting, found, lambda line: print(line, flush=True))
    except NoGpu as error:
        raise UserError(str(error)) from None
    write_text(out, table(found, torch.cuda.get_device_name(), str(triton_version()), before, attention))
    print(f"export LST_KERNELS_TILES={out.resolve()}")


def setting_of(config: "Config", document: int) -> "Setting":
    """The attention of one rank's micro-batch.

    Args:
        document: units of every document on the global axis, tokens on the local one; a row's units at most.

    Raises:
        UserError: the run computes in float32, for which no tile is searched.
    """
    from lst_kernels.bench import Setting
    from megatron_lst.errors import UserError

    if config.training.precision != "bf16":
        raise UserError("training.precision=fp32: tiles are searched for bf16 alone; nothing was measured")
    model, tensor, units = config.model, config.parallel.tensor, config.data.units
    return Setting(
        rows=config.training.micro_batch,
        units_per_row=units,
        document_tokens=min(document, units),
        local_dim=model.local_hidden // tensor,
        local_heads=model.local_heads // tensor,
        queries=model.queries,
        window=model.window,
        global_heads=model.heads // tensor,
        global_kv_heads=max(1, model.global_kv_heads // tensor),
        global_head_dim=model.global_head_size,
        global_ffn=model.global_ffn // tensor,
        vocabulary=config.vocabulary.padded_size // tensor,
    )
