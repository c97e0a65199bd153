"""`lst plan`: layouts that fit a cluster, with memory, time and cost, before anything is started."""

import difflib
import json
import shlex
from dataclasses import asdict
from typing import Annotated, Any

import typer

from megatron_lst.cli.options import finite
from megatron_lst.cli.tables import print_table
from megatron_lst.errors import UserError


def plan(
    config: Annotated[str, typer.Argument(help="A YAML file, such as configs/lst-7b.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as training.steps=1000")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Accelerators of a node")] = 8,
    device: Annotated[str, typer.Option(help="Accelerator: a100, h100, h200, b200, mi300x, ...")] = "h100",
    efficiency: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Assumed share of the peak in large matrix products")
    ] = 0.62,
    network: Annotated[
        float, typer.Option(min=0, callback=finite, help="Between nodes: GB/s in one direction, per accelerator")
    ] = 50.0,
    price: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Price of one accelerator for one hour")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Layouts to show")] = 8,
    scale: Annotated[
        bool, typer.Option(help="Simulate a whole job of the first layout with the real code: some seconds to minutes")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables")] = False,
) -> None:
    """Memory, time and cost of a run by layout: weights and optimizer exactly, activations and time as estimates."""
    from megatron_lst.config import load_config

    given = overrides or []
    settings = load_config(config, given)
    result = make_plan(settings, config, given, nodes, gpus_per_node, device, efficiency, network, price, top)
    if scale:
        result["scale"] = simulate_first(result)
    if as_json:
        print(json.dumps(result))
    else:
        _print(result)


def make_plan(
    settings: Any,
    name: str,
    given: list[str],
    nodes: int,
    gpus_per_node: int,
    device: str,
    efficiency: float,
    network: float,
    price: float | None,
    top: int,
) -> dict[str, Any]:
    """Everything that `lst plan` says, as plain data.

    Raises:
        UserError: unknown device, impossible numbers, or no layout at all for that many accelerators.
    """
    from megatron_lst.parallel.layout import ParallelLayout, problems
    from megatron_lst.planning.devices import DEVICES, find_device
    from megatron_lst.planning.search import USABLE, Cluster, evaluate, search
    from megatron_lst.planning.speed import Assumptions

    found = find_device(device)
    if found is None:
        names = [d.name for d in DEVICES]
        close = difflib.get_close_matches(device.lower(), names, n=1)
        raise UserError(
            f"--device {device}: not known; "
            + (f"did you mean {close[0]}? " if close else "")
            + f"One of {', '.join(names)}"
        )
    if nodes < 1 or gpus_per_node < 1 or not 0 < efficiency <= 1 or network <= 0:
        raise UserError("--nodes and --gpus-per-node must be at least 1, --efficiency in (0, 1], --network above 0")
    cluster = Cluster(found, nodes * gpus_per_node, Assumptions(efficiency, network * 1e9, gpus_per_node))
    plans = search(settings, cluster)
    if not plans:
        raise UserError(
            f"no layout of {cluster.gpus} accelerators works with training.global_batch="
            f"{settings.training.global_batch} and model.layers={settings.model.layers}: change one of them"
        )

    def describe(one: Any) -> dict[str, Any]:
        hours = one.time.total * settings.training.steps / 3600
        gpu_hours = hours * cluster.gpus
        return {
            "layout": str(one.layout),
            "short": one.layout.short,
            "overrides": one.overrides,
            "split": list(one.split.layers),
            "fits": one.fits,
            "memory": {**asdict(one.memory), "total": one.memory.total},
            "seconds": {**asdict(one.time), "total": one.time.total},
            "units_per_second": settings.training.global_batch * settings.data.units / one.time.total,
            "hours": hours,
            "gpu_hours": gpu_hours,
            "cost": None if price is None else gpu_hours * price,
        }

    parallel = settings.parallel
    model_ranks = parallel.tensor * parallel.pipeline
    own = ParallelLayout(
        parallel.tensor, parallel.pipeline, parallel.virtual, cluster.gpus // model_ranks, parallel.sequence
    )
    refused = problems(settings, own, cluster.gpus)
    return {
        "config": name,
        "overrides": given,
        "device": asdict(found),
        "gpus": cluster.gpus,
        "assumptions": asdict(cluster.assumed),
        "usable_memory": USABLE * found.memory,
        "steps": settings.training.steps,
        "fp8": settings.engine.fp8,
        "own": None if refused else describe(evaluate(settings, cluster)),
        "own_problems": refused,
        "plans": [describe(one) for one in plans[:top]],
    }


def simulate_first(result: dict[str, Any]) -> dict[str, Any]:
    """What `simulation.report.summary` counts in a job of the first layout of `make_plan`.

    Raises:
        UserError: it is DeepSpeed's.
    """
    from megatron_lst.config import load_config
    from megatron_lst.simulation.report import simulate_sizes

    config = load_config(result["config"], [*result["overrides"], *result["plans"][0]["overrides"]])
    if config.engine.name != "megatron":
        raise UserError("--scale: the simulator takes engine.name=megatron alone")
    return simulate_sizes(config, [result["gpus"]])[0]


def _print_scale(console: Any, found: dict[str, Any] | None) -> None:
    if found is None:
        console.print("What a job of it does to files and other ranks: add --scale (the real code, simulated).")
        return
    worst, phases, job = found["worst"], found["phases"], found["extrapolated"]

    def files(phase: str) -> int:
        return sum(phases[phase][key] for key in ("opened", "listed", "stated"))

    console.print(
        f"Simulated with the real code, {found['layout']}, the worst rank: {worst['groups']} process groups, by "
        f"arithmetic {worst['sockets']} connections beside NCCL's. "
        f"Files opened, listed or looked at: {files('start')} at start, "
        f"{files('first batch')} for the first batch, {files('save')} in a save, {files('resume')} in a resume. "
        f"{phases['step']['collectives']} collectives of the host in a step. "
        f"On a device beside the state: {worst['step_device'] / 1e9:.2f} GB in a step, "
        f"{worst['save_device'] / 1e9:.2f} in a save, {worst['load_device'] / 1e9:.2f} in a load. "
        f"A save, extrapolated from the ranks looked at: {job['files']} files, {job['written'] / 1e9:.0f} GB."
    )


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{result['config']} on {result['gpus']} x {result['device']['name']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("layout", overflow="fold")
    for heading in ("micro\nbatch", "recompute"):
        table.add_column(heading, overflow="fold")
    for heading in ("state\nGB", "activ\nGB", "logit\nGB", "total\nGB", "step\ns", "MFU", "days", "GPU\nhours"):
        table.add_column(heading, justify="right", overflow="fold")
    priced = result["plans"][0]["cost"] is not None
    if priced:
        table.add_column("cost", justify="right", overflow="fold")
    rows = [("*", result["own"])] if result["own"] else []
    for mark, one in [*rows, *(("", p) for p in result["plans"])]:
        memory, values = one["memory"], dict(item.split("=") for item in one["overrides"])
        states = memory["weights"] + memory["gradients"] + memory["optimizer"]
        total, seconds = f"{memory['total'] / 1e9:.1f}", one["seconds"]["total"]
        table.add_row(
            one["short"] + mark,
            values["training.micro_batch"],
            values["training.recompute"],
            f"{states / 1e9:.1f}",
            f"{memory['activations'] / 1e9:.1f}",
            f"{memory['logits'] / 1e9:.1f}",
            total if one["fits"] else f"[red]{total}[/]",
            f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}",
            f"{one['seconds']['mfu']:.0%}",
            f"{one['hours'] / 24:.1f}",
            _short(one["gpu_hours"]),
            *([_short(one["cost"])] if priced else []),
        )
    print_table(table, console)
    own = "; * as configured" if result["own"] else ""
    console.print(f"TP: tensor, SP: sequence, PP: pipeline (x virtual), DP: data parallel{own}")
    for problem in result["own_problems"]:
        console.print(f"as configured it cannot run on {result['gpus']} accelerators: {problem}")
    best, assumed = result["plans"][0], result["assumptions"]
    usable = result["usable_memory"] / 1e9
    if best["fits"]:
        decided = {one.split("=")[0] for one in best["overrides"]}
        given = [one for one in result["overrides"] if one.split("=")[0] not in decided]
        command = shlex.join(["lst", "train", result["config"], *given, *best["overrides"]])
        console.print(f"The first one: {command}", soft_wrap=True, markup=False)
    else:
        console.print(f"[red]Nothing fits[/] into {usable:.0f} GB: take more or larger accelerators.")
    memory = best["memory"]
    console.print(
        f"A checkpoint: at most {memory['saving'] / 1e9:.1f} GB beside the state on a device while it is saved or "
        f"loaded, {memory['host'] / 1e9:.1f} GB in the host's memory of each rank that writes."
    )
    _print_scale(console, result.get("scale"))
    console.print(
        f"Estimates: large matrix products at {assumed['efficiency']:.0%} of the peak, {assumed['network'] / 1e9:.0f} "
        f"GB/s between nodes for each accelerator, {usable:.0f} GB usable. Weights, gradients and optimizer "
        "are exact; time and activations are not: measure a few steps before you rely on them."
    )
    if result["fp8"] != "none":
        console.print(f"Time and MFU are those of bf16: what engine.fp8={result['fp8']} gains is not known.")


def _short(number: float) -> str:
    """Four characters: 80 columns are few."""
    for size, unit, least in ((1e6, "M", 1e7), (1e3, "k", 1e4)):
        if number >= least:
            return f"{number / size:.0f}{unit}"
    return f"{number:.0f}"
