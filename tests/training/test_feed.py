"""Rows are built once a machine and data-parallel share, on real gloo ranks; whoever ends is noticed by the others."""

import dataclasses
import os
import signal
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_lst.config.schema import Config
from megatron_lst.data import RowStream, open_loader
from megatron_lst.engines.microbatches import PackedStep, pack_step
from megatron_lst.errors import DamagedDataError, PeerLost
from megatron_lst.parallel.layout import check_layout
from megatron_lst.patching.row import Row, batch_hash
from megatron_lst.training import builders
from megatron_lst.training.feed import RowFeed
from megatron_lst.training.ranks import Ranks
from tests.data.toy import make_config, on_disk
from tests.support.ranks import RankPool

STEPS = 3
ROWS = 8


class Counting:
    """A loader that counts the rows it gives, and meets an error or an end in the step it is told."""

    def __init__(self, *arguments: Any, ends_in: int = -1, error: BaseException | None = None) -> None:
        self._loader = open_loader(*arguments)
        self._steps, self._ends_in, self._error = 0, ends_in, error
        self.built = 0

    def __next__(self) -> Any:
        self._steps += 1
        if self._steps == self._ends_in:
            if self._error is not None:
                raise self._error
            os.kill(os.getpid(), signal.SIGKILL)
        step = next(self._loader)
        self.built += len(step.rows)
        return step

    def close(self) -> None:
        self._loader.close()


@dataclasses.dataclass
class Share:
    """What a feed asks an engine for: its coordinates, and `pack`, the engines' own."""

    config: Config
    data_rank: int
    data_size: int

    def pack(self, rows: list[Row]) -> PackedStep:
        return pack_step(rows, self.config, check_layout(self.config, 1))


def make_feed(config: Config, share: int, shares: int, machine: str, **ends: Any) -> tuple[RowFeed, list[Counting]]:
    loaders: list[Counting] = []

    def open_rows(*arguments: Any) -> Any:
        loaders.append(Counting(*arguments, **ends))
        return loaders[0]

    engine: Any = Share(config, share, shares)
    return RowFeed(config, Ranks(), engine, None, 0, STEPS, machine, open_rows), loaders


def take_steps(config: Config, places: list[tuple[int, str]], shares: int) -> dict[str, Any]:
    share, machine = places[dist.get_rank()]
    feed, loaders = make_feed(config, share, shares, machine)
    rows, cursors = [], {}
    with feed:
        for batch in feed:
            rows.append([(row.index, row.hash, int(row.tokens.sum())) for row in batch.rows])
            assert [n for part in batch.packed.batches for n in part.lengths], "packed"
            cursors.update(batch.cursors)
    built = sum(loader.built for loader in loaders)
    return {"share": share, "rows": rows, "cursors": cursors, "built": built, "builders": feed.builders}


def the_config(shard_sets: dict[str, Path]) -> Config:
    return on_disk(make_config(training__global_batch=ROWS, training__micro_batch=2, data__streams=8), shard_sets)


LAYOUTS = {
    "two peers": ([(0, "a")] * 2, 1, 1),
    "four peers": ([(0, "a")] * 4, 1, 1),
    "two shares on one machine": ([(0, "a"), (0, "a"), (1, "a"), (1, "a")], 2, 1),
    "a share on two machines": ([(0, "a"), (0, "a"), (0, "b"), (0, "b")], 1, 2),
    "stages on two machines": ([(0, "a"), (0, "a"), (1, "a"), (1, "a"), (0, "b"), (0, "b"), (1, "b"), (1, "b")], 2, 2),
    "a share ends within a machine": ([(0, "a"), (0, "a"), (1, "a"), (1, "b")], 2, 2),  # each for itself
    "control: no two on one machine": ([(0, "a"), (0, "b"), (0, "c"), (0, "d")], 1, 4),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_are_built_once_a_machine_and_are_the_same(ranks: RankPool, shard_sets: dict, name: str) -> None:
    places, shares, machines = LAYOUTS[name]
    config = the_config(shard_sets)
    alone = RowStream(config, 0, 1)
    expected = [next(alone) for _ in range(STEPS)]
    results = ranks.run(take_steps, len(places), config, places, shares)
    assert sum(r["built"] for r in results) == STEPS * ROWS * machines
    assert {r["builders"] for r in results} == {machines * shares}
    for step in range(STEPS):
        of_share = {}
        for r in results:
            assert of_share.setdefault(r["share"], r["rows"][step]) == r["rows"][step], "peers train on the same rows"
        together = sorted(row for rows in of_share.values() for row in rows)
        assert len({len(rows) for rows in of_share.values()}) == 1
        assert batch_hash([h for _, h, _ in together]) == batch_hash([row.hash for row in expected[step].rows])
        assert [total for _, _, total in together] == [int(row.tokens.sum()) for row in expected[step].rows]
    cursors: dict[str, Any] = {}
    for r in results:
        cursors.update(r["cursors"])
    wanted: dict[str, Any] = {}
    for part in expected:
        wanted.update(part.cursors)
    assert cursors == wanted, "a checkpoint holds the position of every stream"


def balance_among(config: Config, shares: int) -> tuple[list[list[tuple[int, int]]], int]:
    """This rank's rows of each step (index, hash), of four shares that balance among so many; members of its group."""
    builders.SHARES_BALANCED = shares
    feed, _ = make_feed(config, dist.get_rank(), 4, f"machine {dist.get_rank()}")
    with feed:
        rows = [[(row.index, row.hash) for row in batch.rows] for batch in feed]
        return rows, dist.get_world_size(feed._balance._group)


@pytest.mark.multiprocess
def test_rows_are_balanced_among_neighbours(ranks: RankPool, shard_sets: dict) -> None:
    """The same batch, and of four builders two are connected; all are where all are neighbours (the control)."""
    config = the_config(shard_sets)
    found = {shares: ranks.run(balance_among, 4, config, shares) for shares in (2, 64)}
    for shares, members in ((2, 2), (64, 4)):
        assert [size for _, size in found[shares]] == [members] * 4
    batches = {
        shares: [sorted(chain(*step)) for step in zip(*(rows for rows, _ in of_ranks), strict=True)]
        for shares, of_ranks in found.items()
    }
    assert batches[2] == batches[64]


def test_exactly_one_step_is_made_ahead(shard_sets: dict[str, Path]) -> None:
    feed, (loader,) = make_feed(the_config(shard_sets), 0, 1, "a")
    with feed:
        for taken in range(1, STEPS + 1):
            next(feed)
            ahead = min(taken + 1, STEPS) * ROWS
            deadline = time.monotonic() + 10
            while loader.built < ahead and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)
            assert loader.built == ahead
        with pytest.raises(StopIteration):
            next(feed)


def end_in_the_second_step(config: Config, what: str) -> list[int]:
    """The builder ends; who takes rows from it comes out with what it saw."""
    error = DamagedDataError("shard 7 is damaged") if what == "error" else None
    feed, loaders = make_feed(config, 0, 1, "a", ends_in=2 if what != "taker" else -1, error=error)
    steps = []
    with feed:
        try:
            for batch in feed:
                steps.append(len(batch.rows))
                if what == "taker":
                    if not loaders:
                        os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(0.5)
        except (PeerLost, DamagedDataError) as failure:
            raise RuntimeError(f"after {len(steps)} steps {type(failure).__name__}: {failure}") from None
    return steps


def leftovers() -> set[str]:
    sockets = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@lst-rows" in line}
    return sockets | {name for name in os.listdir("/dev/shm") if not name.startswith(("torch_", "sem."))}


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("what", "times", "seen"),
    [
        ("killed", 1, r"after 1 steps PeerLost: rank \d \(pid \d+\), which builds this process's rows, has ended"),
        ("error", 2, r"after 1 steps DamagedDataError: shard 7 is damaged"),
        ("taker", 1, r"after \d steps PeerLost: process \d+ of this machine, which takes its rows .* has ended"),
    ],
)
def test_whoever_ends_is_noticed_and_leaves_nothing(
    ranks: RankPool, shard_sets: dict, what: str, times: int, seen: str
) -> None:
    before, began = leftovers(), time.monotonic()
    with pytest.raises(RuntimeError, match=seen) as caught:
        ranks.run(end_in_the_second_step, 2, the_config(shard_sets), what)
    assert time.monotonic() - began < 60
    assert str(caught.value).count("RuntimeError: after") == times
    assert leftovers() == before
