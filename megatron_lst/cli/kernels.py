"""`lst kernels`: compile the kernels for GPUs that are not here, and time them on the one that is."""

from pathlib import Path
from typing import Annotated

import typer

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
    out: Annotated[Path, typer.Option(help="JSON file; rows of other devices in it are kept")] = Path("tiles.json"),
) -> None:
    """Search this machine's GPU for attention's quickest tiles that pass the check, and time its implementations.
    Launches and engine.attention=auto follow the file where LST_KERNELS_TILES names it."""
    import torch

    from lst_kernels.backends import triton_version
    from lst_kernels.bench import NoGpu, Setting
    from lst_kernels.tune import compare, table
    from lst_kernels.tune import tune as search
    from megatron_lst.errors import UserError
    from megatron_lst.files import write_text

    before = out.read_text(encoding="utf-8") if out.exists() else None
    try:
        table([], "", "", before)  # a file that cannot be continued is found before the search
        found = search(Setting(), lambda line: print(line, flush=True))
        attention = compare(Setting(), found, lambda line: print(line, flush=True))
    except NoGpu as error:
        raise UserError(str(error)) from None
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{out}: not a file of tiles: {error}; give another --out") from None
    write_text(out, table(found, torch.cuda.get_device_name(), str(triton_version()), before, attention))
    print(f"export LST_KERNELS_TILES={out.resolve()}")
