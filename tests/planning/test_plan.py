"""Ranked layouts: every one can run, the best fits, the estimate moves the right way, and the command says so."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.config import load_config
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.flops import row_flops
from megatron_lst.parallel.layout import ParallelLayout, problems
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.planning import Cluster, StepTime, find_device, search, step_time
from megatron_lst.planning.devices import Device
from megatron_lst.planning.search import USABLE
from megatron_lst.planning.speed import Assumptions

ROOT = Path(__file__).resolve().parents[2]


def h100() -> Device:
    device = find_device("h100")
    assert device is not None
    return device


def one_b() -> Config:
    return load_config(ROOT / "configs" / "lst-1b.yaml")


def time_of(config: Config, layout: ParallelLayout, assumed: Assumptions | None = None) -> StepTime:
    return step_time(config, layout, pipeline_split(config, layout.pipeline, layout.virtual), h100(), assumed)


def test_alone_the_time_is_that_of_products_and_of_what_is_moved_beside_them() -> None:
    config = one_b()
    time = time_of(config, ParallelLayout(1, 1, 1, 1, False))
    useful = config.training.global_batch * row_flops(config)
    assert time.mfu == pytest.approx(useful / (time.total * 989.4e12))
    assert 0.3 < time.mfu < 0.55
    assert time.bubble == time.tensor == time.data == 0
    faster = time_of(config, ParallelLayout(1, 1, 1, 1, False), Assumptions(efficiency=2 * 0.62))
    assert 0.5 * time.compute < faster.compute < 0.75 * time.compute  # what is moved takes as long as before


def test_what_costs_time_costs_mfu() -> None:
    config = one_b()
    alone = time_of(config, ParallelLayout(1, 1, 1, 4, False))
    assert time_of(config, ParallelLayout(2, 1, 1, 2, True)).mfu < alone.mfu
    piped, interleaved = (
        time_of(config, ParallelLayout(1, 4, 1, 1, False)),
        time_of(config, ParallelLayout(1, 4, 2, 1, False)),
    )
    assert piped.bubble > interleaved.bubble > 0
    full = replace(config, training=replace(config.training, recompute="full"))
    assert 0.7 * alone.mfu < time_of(full, ParallelLayout(1, 1, 1, 4, False)).mfu < 0.85 * alone.mfu
    slow = Assumptions(network=1e9, per_node=1)
    assert time_of(config, ParallelLayout(1, 1, 1, 4, False), slow).data > 0


@pytest.mark.parametrize(("name", "gpus"), [("lst-1b", 8), ("base-7b", 16), ("lst-70b", 128)])
def test_every_plan_can_run_and_the_first_fits_best(name: str, gpus: int) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    plans = search(config, Cluster(h100(), gpus))
    assert plans
    for plan in plans:
        assert not problems(plan.config, plan.layout, gpus)
        assert plan.layout.tensor * plan.layout.pipeline * plan.layout.data == gpus
        assert plan.fits == (plan.memory.total <= USABLE * 80e9)
        assert plan.memory.total > 0
    fitting = [plan for plan in plans if plan.fits]
    assert plans[: len(fitting)] == fitting
    times = [plan.time.total for plan in fitting]
    assert times == sorted(times)
    assert fitting[0].memory.total > min(plan.memory.total for plan in fitting), "time decides, not the least memory"


def test_overrides_give_the_plan_back() -> None:
    path = ROOT / "configs" / "lst-7b.yaml"
    plan = search(load_config(path), Cluster(h100(), 16))[3]
    assert load_config(path, plan.overrides) == plan.config


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


def test_the_command_shows_layouts_and_cost() -> None:
    config = str(ROOT / "configs" / "lst-7b.yaml")
    answer = run(config, "--nodes", "4", "--price", "2", "--top", "3")
    assert answer.exit_code == 0, answer.output
    for words in ("lst train", "parallel.tensor=", "TP1 PP1 DP32", "as configured", "Estimates"):
        assert words in answer.output
    data = json.loads(run(config, "--nodes", "4", "--price", "2", "--json").output)
    best = data["plans"][0]
    assert best["cost"] == pytest.approx(2 * best["gpu_hours"])
    assert best["gpu_hours"] == pytest.approx(best["hours"] * 32)
    assert data["assumptions"]["efficiency"] == 0.62


def test_the_command_that_is_advised_is_the_run_that_was_planned() -> None:
    config = str(ROOT / "configs" / "lst-1b.yaml")
    said = run(config, "training.steps=7", "training.micro_batch=64", "run.dir=my runs").output
    (line,) = (line for line in said.splitlines() if "lst train" in line)
    words = shlex.split(line.split("lst train ")[1])
    assert words[0] == config
    assert {"training.steps=7", "run.dir=my runs"} <= set(words)
    assert len([word for word in words if word.startswith("training.micro_batch=")]) == 1, "the plan decides it"
    load_config(config, words[1:])


def test_times_are_not_said_to_be_those_of_fp8() -> None:
    said = run(str(ROOT / "configs" / "lst-1b.yaml"), "engine.fp8=hybrid").output
    assert "Time and MFU are those of bf16: what engine.fp8=hybrid gains is not known" in said
    assert "those of bf16" not in run(str(ROOT / "configs" / "lst-1b.yaml")).output


def test_what_does_not_fit_is_said() -> None:
    answer = run(str(ROOT / "configs" / "lst-70b.yaml"))
    assert answer.exit_code == 0
    assert "Nothing fits" in answer.output
    assert "as configured it cannot run on 8" in re.sub(r"\s+", " ", answer.output)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "h1000"], "--device h1000"),
        (["--nodes", "0"], "--nodes"),
        (["--efficiency", "2"], "--efficiency"),
        (
            ["training.global_batch=7", "training.micro_batch=7", "--nodes", "2", "--gpus-per-node", "29"],
            "no layout of 58",
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str) -> None:
    answer = run(str(ROOT / "configs" / "lst-1b.yaml"), *arguments)
    assert answer.exit_code == 2 or isinstance(answer.exception, UserError)
    assert words in answer.output + str(answer.exception)


@pytest.mark.slow
def test_a_job_of_the_first_layout_is_simulated_where_asked() -> None:
    config = str(ROOT / "configs" / "lst-1b.yaml")
    said = re.sub(r"\s+", " ", run(config, "--scale").output)
    assert "Simulated with the real code, TP1 PP1 DP8, the worst rank" in said
    assert "0 collectives of the host in a step" in said
    assert "add --scale" in run(config).output
