"""The simulator against real ranks, and what it finds on thousands of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.scale import _Live, count, looked_at, table, whole_batches
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from tests.support.ranks import RankPool
from tests.support.toy import toy_config

SEVEN = load_config(Path(__file__).resolve().parents[2] / "configs" / "lst-7b.yaml")
LAYOUTS: dict[int, dict[str, Any]] = {
    1: {},
    2: {"parallel__tensor": 2},
    4: {"parallel__pipeline": 2},
    8: {"parallel__tensor": 2, "parallel__pipeline": 2},
}


def real(config: Config, folder: str) -> dict[str, int]:
    """What a rank really does; as `count` says it."""
    from megatron_lst.engines import build_engine
    from megatron_lst.engines.checkpoint_files import StoredShards

    made: list[int] = []
    new_group, read = dist.new_group, StoredShards.read

    def counted(*arguments: Any, **options: Any) -> Any:
        members = arguments[0] if arguments else options.get("ranks")
        made.append(dist.get_world_size() if members is None else len(members))
        return new_group(*arguments, **options)

    dist.new_group = counted
    engine: Any = build_engine(config)
    groups, peers = len(made), sum(size - 1 for size in made)
    engine.save(Path(folder))
    asked: list[int] = []

    def counted_read(self: StoredShards, shard: Any) -> Any:
        tensor = read(self, shard)
        asked.append(tensor.nbytes if isinstance(tensor, torch.Tensor) else 0)
        return tensor

    StoredShards.read = counted_read  # type: ignore[method-assign]
    engine.load(Path(folder))
    mine = sorted(Path(folder).glob(f"__{dist.get_rank()}_*.distcp"))
    engine.close()
    return {"groups": groups, "peers": peers, "files": len(mine), "read": sum(asked)}


@pytest.mark.multiprocess
@pytest.mark.parametrize("world", LAYOUTS)
def test_the_simulated_rank_does_what_a_real_one_does(ranks: RankPool, tmp_path: Path, world: int) -> None:
    config = toy_config(checkpoint__file_megabytes=1, **LAYOUTS[world])
    found = ranks.run(real, world, config, str(tmp_path))
    for rank in looked_at(config, world):
        simulated = count(config, world, rank)
        for key in ("groups", "peers", "files"):
            assert getattr(simulated, key) == found[rank][key], (rank, key)
        if world in (1, 4):  # elsewhere tensor-parallel peers take turns, which one rank alone cannot see
            assert simulated.read == found[rank]["read"]


@pytest.mark.parametrize("ranks", [512, pytest.param(16384, marks=pytest.mark.slow)])
def test_thousands_of_ranks_cost_a_rank_no_more(ranks: int) -> None:
    """Groups, device memory of a save and a load, files: as on 64 ranks. What joins whole states on every rank, as
    before, holds many times more on the device (the control)."""
    few, many = count(SEVEN, 64, 0), count(SEVEN, ranks, 0)
    assert many.groups == few.groups < 30
    assert many.state <= few.state
    assert (many.save_device, many.load_device) == (few.save_device, few.load_device)
    assert many.save_device < 0.3e9
    assert many.files <= 1
    assert many.save_host <= few.save_host < 2e9
    assert many.read < few.read
    assert f"| {ranks} | TP2 SP PP1 DP{ranks // 2} |" in table([[many]])

    from benchmarks.rank import traced_rank

    with traced_rank(whole_batches(SEVEN, 64), 64, 0) as engine, _Live() as joined:
        kept = [torch.empty(p.shape, device=p.device) for p in engine.chunks[0].parameters() for _ in range(3)]
    assert joined.peak > 100 * few.save_device
    assert kept
