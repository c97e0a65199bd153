"""The simulator against real ranks, and what it finds on thousands of them."""

import dataclasses
import functools
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from benchmarks.rows import synthetic_rows
from megatron_lst.config.load import load_config
from megatron_lst.config.schema import Config
from megatron_lst.parallel import state
from megatron_lst.parallel.layout import check_layout
from megatron_lst.planning import Cluster, find_device, search
from megatron_lst.simulation.counting import (
    FIRST_BATCH,
    RESUME,
    SAVE,
    START,
    STEP,
    Counts,
    counting,
    phases_of_training,
)
from megatron_lst.simulation.job import looked_at, simulate, small_job, sockets, whole_batches
from megatron_lst.simulation.live import Live
from megatron_lst.simulation.rank import absent_world, engine_without_values, stage_rank, traced_rank
from megatron_lst.simulation.report import summary, table
from megatron_lst.simulation.trace import trace_schedule
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.resilience import agreement
from tests.parallel.test_layouts import LAYOUTS as PARITY
from tests.support.ranks import RankPool
from tests.support.toy import toy_config, toy_rows

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SEVEN = load_config(CONFIGS / "lst-7b.yaml")
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
        assert simulated.read == found[rank]["read"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [512, 16384])
def test_thousands_of_ranks_cost_a_rank_no_more(ranks: int) -> None:
    """Groups, connections, files, messages, device memory: as on 64 ranks. What joins whole states on every rank, as
    before, holds many times more on the device (the control)."""
    few, many = simulate(SEVEN, 64, 0), simulate(SEVEN, ranks, 0)
    assert many.groups == few.groups < 30
    assert many.sockets <= few.sockets + 2 * 10 + 63
    assert many.state <= few.state
    assert (many.save_device, many.load_device) == (few.save_device, few.load_device)
    assert many.save_device <= many.step_device + many.bucket
    assert many.files <= 1
    assert many.save_host <= few.save_host < 2e9
    assert many.read < few.read
    for phase in (START, FIRST_BATCH, SAVE, RESUME):
        for key in ("opened", "listed", "stated", "collectives"):
            assert many.phases[phase][key] <= 1.2 * few.phases[phase][key] + 2, (phase, key)
    assert many.phases[STEP]["collectives"] == few.phases[STEP]["collectives"] == 0
    assert f"| {ranks} | TP2 SP PP1 DP{ranks // 2} |" in table([summary([many])])

    with traced_rank(whole_batches(SEVEN, 64), 64, 0) as engine, Live() as joined:
        kept = [torch.empty(p.shape, device=p.device) for p in engine.chunks[0].parameters() for _ in range(3)]
    assert joined.peak > 100 * few.save_device
    assert kept


def test_groups_that_all_ranks_make_grow_with_the_ranks() -> None:
    """The control of the groups: without `groups_of_members` a rank takes part in making every one."""
    config = toy_config(parallel__tensor=2)
    made = []
    for plain in (False, True):
        counts = Counts()
        with absent_world(64, 0), counting(counts, []):
            if plain:
                with patch.object(state, "groups_of_members", lambda _: Live().host()):
                    engine_without_values(whole_batches(config, 64))
            else:
                engine_without_values(whole_batches(config, 64))
        made.append(len(counts.groups))
    assert made[0] < 30
    assert made[1] > 64


@pytest.mark.parametrize("name", PARITY)
def test_a_save_needs_no_more_of_a_device_than_the_step_and_a_bucket(name: str) -> None:
    """Every layout of the parity table, every stage, traced."""
    world, changes = PARITY[name]
    config = toy_config(**changes)
    layout = check_layout(config, world)
    for stage in range(layout.pipeline):
        with traced_rank(config, world, stage_rank(layout, stage)) as engine:
            peaks = _peaks(engine, toy_rows(config, config.training.global_batch // layout.data))
        assert peaks["save"] <= peaks["step"] + peaks["bucket"], stage


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gpus"), [("lst-7b", 64), ("lst-70b", 512)])
def test_so_do_the_layouts_that_are_planned_first(name: str, gpus: int) -> None:
    """The first three of `lst plan`; all three fit."""
    device = find_device("h100")
    assert device is not None
    for plan in search(load_config(CONFIGS / f"{name}.yaml"), Cluster(device, gpus))[:3]:
        assert plan.fits
        config, layout = plan.config, plan.layout
        rows = list(islice(synthetic_rows(config, 1500), config.training.micro_batch)) * (
            2 * layout.pipeline if layout.virtual > 1 else 1
        )
        with traced_rank(config, gpus, 0) as engine:
            peaks = _peaks(engine, rows)
        assert peaks["save"] <= peaks["step"] + peaks["bucket"]


def _peaks(engine: Any, rows: list[Any]) -> dict[str, int]:
    """Most bytes on the device beside the state, in a step and in a save; bytes of the largest bucket."""
    from megatron_lst.engines import sharded_checkpoint
    from megatron_lst.engines.megatron import optimizer_state
    from megatron_lst.simulation.others import _Host

    step = trace_schedule(engine, rows).peak
    host = patch.object(sharded_checkpoint, "_to_host", lambda tensor: _Host(tensor.shape, tensor.dtype))
    with host, patch.object(optimizer_state, "get_step", lambda core: 1), Live() as live:
        engine._checkpoints._snapshot(1e9)
    buckets = [b.grad_data.nbytes for chunk in engine._wrapped for buffer in chunk.buffers for b in buffer.buckets]
    return {"step": step, "save": live.peak, "bucket": max(buckets)}


def connections(linear: bool) -> int:
    """Connections that this rank's control messages open; through gloo's gather, too, where asked."""
    import psutil

    def established() -> int:
        return sum(c.status == "ESTABLISHED" for c in psutil.Process().net_connections("tcp"))

    state.start_world()
    before = established()
    ranks = Ranks()
    ranks.max(ranks.rank)
    ranks.barrier()
    ranks.broadcast_object("hello")
    ranks.collect(ranks.rank)
    if linear:
        parts = [torch.zeros(1) for _ in range(ranks.world_size)] if ranks.rank == 0 else None
        dist.gather(torch.zeros(1), parts, dst=0, group=ranks._group)
    dist.barrier(ranks._group)
    return established() - before


@pytest.mark.multiprocess
def test_control_messages_connect_a_rank_with_few(ranks: RankPool) -> None:
    """A ring and trees; a gather connects rank 0 with everybody (the control)."""
    assert max(ranks.run(connections, 8, False)) < 7 <= sockets(8, 1)
    assert ranks.run(connections, 8, True)[0] >= 7
