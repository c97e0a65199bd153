"""A dry run does all that comes before the first step: it fails where training would, and leaves no trace."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.training.dry_run import dry_run
from megatron_lst.training.trainer import train
from tests.support.ranks import RankPool


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_it_says_what_is_ready_and_writes_nothing(tiny_file, tmp_path: Path) -> None:
    config = tiny_file("dry", evaluation__every=2)
    before = files(tmp_path)
    answer = CliRunner().invoke(app, ["train", str(config), "--dry-run"], catch_exceptions=False)
    assert answer.exit_code == 0
    assert files(tmp_path) == before and not (tmp_path / "dry").exists()
    for line in (
        "start: 30 steps from weights drawn from training.seed=0",
        "layout: tensor=1, pipeline=1 (data=1)",
        "GB of weights, gradients and optimizer on a rank",
        "rows: 4 of 64 units on a rank",
        "no step was done",
    ):
        assert line in answer.output, answer.output


def test_of_a_run_that_has_begun_it_says_where_it_goes_on(tiny, tmp_path: Path) -> None:
    config = tiny(training__steps=2)
    train(config)
    before = files(tmp_path)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=5))
    lines = dry_run(longer)
    assert any(line.endswith("step-00000002, 3 steps are left") for line in lines)
    assert files(tmp_path) == before


@pytest.mark.parametrize("fault", ["shards", "seed", "micro_batch"])
def test_it_fails_where_training_would(tiny, fault: str) -> None:
    config: Config = tiny(training__steps=2)
    if fault == "shards":
        first, *others = config.data.sources
        sources = (dataclasses.replace(first, shards=("/nowhere",)), *others)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    elif fault == "seed":  # another run than the one in the folder
        train(config)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=5))
    else:
        config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, tensor=7))
    with pytest.raises(UserError) as theirs:
        train(config)
    with pytest.raises(UserError) as ours:
        dry_run(config)
    assert str(ours.value) == str(theirs.value)


def _on_ranks(config: Config) -> list[str]:
    return dry_run(config)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_every_rank_takes_part(tiny, ranks: RankPool) -> None:
    first, second = ranks.run(_on_ranks, 2, tiny(parallel__pipeline=2))
    assert any("pipeline=2" in line for line in first) and len(first) == len(second)
