"""The simulator against real ranks, and what it finds on thousands of them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_lst.config.schema import Config
from megatron_lst.simulation.counting import (
    RESUME,
    SAVE,
    START,
    STEP,
    Counts,
    counting,
    phases_of_training,
)
from megatron_lst.simulation.job import looked_at, simulate, small_job
from megatron_lst.training.resilience import agreement
from tests.support.ranks import RankPool
from tests.support.toy import toy_config

LAYOUTS: dict[int, dict[str, Any]] = {
    1: {},
    2: {"parallel__tensor": 2},
    4: {"parallel__pipeline": 2},
    8: {"parallel__tensor": 2, "parallel__pipeline": 2},
}


def real(config: Config) -> dict[str, Any]:
    """What a rank really does in a job; as `simulate` says it."""
    from megatron_lst.engines.checkpoint_files import StoredShards
    from megatron_lst.training import builders, trainer

    builders.local_identity = lambda: f"machine of rank {dist.get_rank()}"  # type: ignore[assignment]
    counts, read = Counts(), [0]
    plain = StoredShards.read

    def counted_read(self: StoredShards, shard: Any) -> Any:
        tensor = plain(self, shard)
        read[0] += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
        return tensor

    StoredShards.read = counted_read  # type: ignore[method-assign]
    agree = agreement.agree
    with counting(counts, [Path(config.run.dir).parent]), phases_of_training(counts):
        trainer.train(config)
        first = {phase: counts.of(phase) for phase in (START, STEP, SAVE)}
        files = [name for name in counts.written if name.endswith(".distcp")]
        groups = list(counts.groups)
        counts.clear()
        agreement.agree = functools.partial(agree, prefix="again")  # the store is that of the first start
        trainer.train(dataclasses.replace(config, training=dataclasses.replace(config.training, steps=4)))
    return {
        "groups": len(groups),
        "peers": sum(size - 1 for size in groups),
        "files": len(files),
        "read": read[0],
        "phases": first | {RESUME: counts.of(RESUME)},
    }


@pytest.mark.multiprocess
@pytest.mark.parametrize("world", [1, 2, *(pytest.param(many, marks=pytest.mark.slow) for many in (4, 8))])
def test_the_simulated_rank_does_what_a_real_one_does(ranks: RankPool, tmp_path: Path, world: int) -> None:
    config = toy_config(checkpoint__file_megabytes=1, **LAYOUTS[world])
    found = ranks.run(real, world, small_job(config, world, tmp_path))
    for rank in looked_at(config, world):
        simulated = simulate(config, world, rank)
        for key in ("groups", "peers", "files"):
            assert getattr(simulated, key) == found[rank][key], (rank, key)
        for phase in (START, STEP, SAVE, RESUME):
            mine, theirs = simulated.phases[phase], found[rank]["phases"][phase]
            assert mine["collectives"] == theirs["collectives"], (rank, phase)
            for key in ("opened", "listed", "stated") if phase != STEP else ():
                # Which small files a rank looks at depends on how many there are, and rank 0's lock is seen here.
                assert abs(mine[key] - theirs[key]) <= (0 if phase == SAVE else 4), (rank, phase, key, mine, theirs)
        if world in (1, 4):  # elsewhere tensor-parallel peers take turns, which one rank alone cannot see
            assert simulated.read == found[rank]["read"]
