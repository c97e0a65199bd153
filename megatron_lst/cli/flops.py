"""`lst flops`: parameters and FLOPs of a configuration, and the published accounting recomputed."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from megatron_lst.cli.tables import narrow_table, print_table
from megatron_lst.errors import UserError

CONFIG = Annotated[str | None, typer.Argument(help="A YAML file, such as configs/lst-1b.yaml")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key=value, such as model.text_path=direct")]
CODECS = Annotated[
    list[str] | None,
    typer.Option(
        "--codec", help="A file of configs/codecs over CONFIG; may be repeated: one line a codec, a second of speech"
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables")]
DECIMALS = {"B tokens": 1, "%": 1, "B units": 1, "epochs": 1, "k steps": 0, "M": 0, "k units/s/GPU": 1}


def flops(
    config: CONFIG = None,
    overrides: OVERRIDES = None,
    paper: Annotated[bool, typer.Option("--paper", help="The published accounting, recomputed")] = False,
    codec: CODECS = None,
    as_json: JSON = False,
) -> None:
    """Parameters and FLOPs of a configuration per unit, token and row; or the paper's accounting, recomputed."""
    if paper == (config is not None):
        raise UserError("lst flops takes either a configuration, such as configs/lst-1b.yaml, or --paper")
    if codec and config is None:
        raise UserError("--codec is laid over a configuration, such as configs/lst-1b.yaml")
    if paper:
        _paper(as_json)
    elif codec:
        _codecs(str(config), overrides or [], codec, as_json)
    else:
        assert config is not None
        _config(config, overrides or [], as_json)


def _paper(as_json: bool) -> None:
    from dataclasses import asdict

    from megatron_lst.flops.paper import flop_lines, static_mix, unit_lines

    counted, true, mix = unit_lines(), flop_lines(), static_mix(4)
    if as_json:
        print(json.dumps({"units": [asdict(line) for line in counted], "flops": [asdict(line) for line in true]}))
        return
    console = Console()
    for title, lines in (
        ("What the paper counts: units and raw tokens", counted),
        ("The same in true FLOPs (the paper's 1B, forward and backward, useful work only)", true),
    ):
        table = Table(title=title, title_justify="left", caption_justify="left")
        for name, justify in (("table", "left"), ("", "left"), ("recomputed", "right"), ("published", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column("unit")
        table.add_column("note", overflow="fold")
        for line in lines:
            digits = DECIMALS.get(line.unit, 2)
            published = "" if line.published is None else f"{line.published:g}"
            table.add_row(line.table, line.what, f"{line.recomputed:,.{digits}f}", published, line.unit, line.note)
        print_table(table, console)
    console.print(
        f"Beside every comparison at equal units: LST static 4 sees {1 / mix.units_per_token:.2f} times the data, with "
        f"{1 / mix.interleaved_units:.1f} times the context in interleaved documents, and spends the FLOPs above."
    )


def describe(config: Any) -> dict[str, Any]:
    """Everything `lst flops CONFIG` prints, as plain data."""
    from dataclasses import asdict

    from megatron_lst.flops import expected_work, module_flops, module_parameters, row_speech_seconds
    from megatron_lst.flops.counter import TRAINING_FACTOR

    work = expected_work(config)
    modules = {
        name: {
            "forward_row": flops,
            "training_row": TRAINING_FACTOR * flops,
            "training_unit": TRAINING_FACTOR * flops / work.units,
            "training_token": TRAINING_FACTOR * flops / work.tokens,
        }
        for name, flops in module_flops(config, work).items()
    }
    total = {key: sum(module[key] for module in modules.values()) for key in next(iter(modules.values()))}
    counts = module_parameters(config)
    rows = config.training.steps * config.training.global_batch
    return {
        "parameters": {**counts, "total": sum(counts.values())},
        "flops": {**modules, "total": total},
        "row": asdict(work),
        "run": {
            "rows": rows,
            "units": rows * work.units,
            "tokens": rows * work.tokens,
            "flops": rows * total["training_row"],
            "speech_hours": rows * row_speech_seconds(config) / 3600,
        },
        "speech_second": _speech_second(config),
    }


def _speech_second(config: Any) -> dict[str, Any]:
    """A second of speech in rows of speech alone, and the same without patches."""
    from megatron_lst.flops import flattened, forward_flops, speech_second
    from megatron_lst.flops.counter import TRAINING_FACTOR
    from megatron_lst.vocabulary import rate_text

    def costs(one: Any) -> tuple[float, float]:
        work = speech_second(one)
        return work.units, TRAINING_FACTOR * forward_flops(one, work)

    (units, patched), (tokens, flat) = costs(config), costs(flattened(config))
    vocabulary = config.vocabulary
    return {
        "rate": rate_text(vocabulary.rate),
        "codebooks": list(vocabulary.codebook_sizes),
        "patch_size": vocabulary.depth * float(vocabulary.rate) / units,
        "tokens": tokens,
        "units": units,
        "training_flops": patched,
        "flattened_training_flops": flat,
    }


def _codecs(path: str, overrides: list[str], codecs: list[str], as_json: bool) -> None:
    """A second of speech of each codec: what it costs in patches, and flattened."""
    from pathlib import Path

    from megatron_lst.config import load_config

    lines = {Path(one).stem: _speech_second(load_config(path, overrides, [one])) for one in codecs}
    if as_json:
        print(json.dumps(lines))
        return
    columns = (
        "tokens", "rate, Hz", "Q", "patch size", "units / s", "FLOPs / s", "flat units / s", "flat FLOPs / s", "ratio",
    )  # fmt: skip
    table = narrow_table(
        f"{path}: training on a second of speech, in rows of speech alone; flat: without patches",
        columns,
        left=["tokens"],
    )
    for name, line in lines.items():
        patched, flat = line["training_flops"], line["flattened_training_flops"]
        table.add_row(
            name,
            line["rate"],
            str(len(line["codebooks"])),
            f"{line['patch_size']:.4g}",
            f"{line['units']:.4g}",
            _si(patched).removesuffix("FLOP").strip(),
            f"{line['tokens']:g}",
            _si(flat).removesuffix("FLOP").strip(),
            f"{flat / patched:.2f}",
        )
    print_table(table)


def _config(path: str, overrides: list[str], as_json: bool) -> None:
    from megatron_lst.config import load_config

    result = describe(load_config(path, overrides))
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    table = Table(title=f"{path}: parameters", title_justify="left")
    table.add_column("module")
    table.add_column("parameters", justify="right")
    for name, count in result["parameters"].items():
        table.add_row(name, f"{count:,}", style="bold" if name == "total" else None)
    print_table(table, console)
    columns = ("module", "forward,\nrow", "training,\nrow", "training,\nunit", "training,\ntoken", "share")
    table = narrow_table("FLOPs of an expected full row, useful work only", columns, left=["module"])
    whole = result["flops"]["total"]["forward_row"]
    for name, values in result["flops"].items():
        cells = [_si(value).removesuffix("FLOP").strip() for value in values.values()]
        table.add_row(name, *cells, f"{values['forward_row'] / whole:.1%}", style="bold" if name == "total" else None)
    print_table(table, console)
    row, run = result["row"], result["run"]
    console.print(
        f"A row: {row['units']:,.0f} units, {row['tokens']:,.0f} raw tokens expected "
        f"({row['units'] / row['tokens']:.3f} units a token)."
    )
    console.print(
        f"The run: {run['rows']:,} rows, {_short(run['units'])} units, {_short(run['tokens'])} raw tokens, "
        f"{run['speech_hours']:,.0f} hours of speech, {_si(run['flops'])}."
    )
    second = result["speech_second"]
    console.print(
        f"A second of speech: {second['rate']} frames of {len(second['codebooks'])} = {second['tokens']:g} tokens, "
        f"{second['units']:.4g} units of {second['patch_size']:.3g}, {_si(second['training_flops'])} of training; "
        f"flattened, a unit a token: {_si(second['flattened_training_flops'])} "
        f"({second['flattened_training_flops'] / second['training_flops']:.2f} times as much)."
    )


def _si(flops: float) -> str:
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if flops >= 10**power:
            return f"{flops / 10**power:,.2f} {prefix}FLOP"
    return f"{flops:,.0f} FLOP"


def _short(count: float) -> str:
    return f"{count / 1e9:,.1f}B" if count >= 1e9 else f"{count / 1e6:,.1f}M" if count >= 1e6 else f"{count:,.0f}"
