"""A hang ends with code 4, all stacks, and the name of the rank that did not arrive."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_lst.errors import TrainingFault
from megatron_lst.files import read_json, write_json
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.watchdog import Watchdog, explain


def account(rank: int, beats: int = 10, waits: bool = True, phase: str = "step") -> dict:
    return {
        "rank": rank,
        "host": f"node{rank}",
        "pid": 100 + rank,
        "beats": beats,
        "step": 5,
        "phase": phase,
        "waits": waits,
        "at": "x.py:1 in f",
    }


def test_a_rank_that_wrote_nothing():
    said = explain({0: account(0), 2: account(2)}, 3)
    assert said.startswith("rank 1 did not answer")


def test_a_rank_that_is_behind():
    said = explain({0: account(0), 1: account(1, beats=9, waits=False, phase="data")}, 2)
    assert said == "rank 1 on node1 (process 101) did not arrive: data of step 5, x.py:1 in f"


def test_a_rank_that_computes_while_others_wait():
    assert "rank 1 on node1" in explain({0: account(0), 1: account(1, waits=False), 2: account(2)}, 3)


def test_nobody_is_blamed_without_evidence():
    assert "none can be named" in explain({r: account(r) for r in range(3)}, 3)
    assert "none can be named" in explain({r: account(r, waits=False) for r in range(3)}, 3)


def test_a_run_in_time_is_left_alone(tmp_path):
    left: list[int] = []
    with Watchdog(tmp_path, rank=0, world_size=1, seconds=0.5, leave=left.append) as dog:
        for step in range(12):
            time.sleep(0.1)
            dog.beat(step)
    assert left == []
    assert not (tmp_path / "logs").exists()


RANK = """
import sys, time
from pathlib import Path
from megatron_lst.training.resilience.watchdog import Watchdog
from megatron_lst.training.resilience.events import EventLog
folder, rank, stuck = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
log = EventLog(folder / "events.log")
dog = Watchdog(folder, rank=rank, world_size=3, seconds=1.5, grace=3, report=lambda s, step: log.write("hang", s, step))
def load_the_data(): time.sleep(60)
with dog:
    for step in range(1, 4):
        dog.beat(step, "data")
        if step == 3 and rank == 1 and stuck == "data": print("stuck", flush=True); load_the_data()
        dog.beat(step, "step")
    print("stuck", flush=True)
    time.sleep(60)
"""


def hang(folder: Path, stuck: str) -> tuple[list[subprocess.Popen], float]:
    start = time.monotonic()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(rank), stuck],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    assert all(p.stdout.readline() == "stuck\n" for p in ranks)
    return ranks, start


@pytest.mark.multiprocess
def test_a_rank_stuck_in_its_data_is_named_with_its_stack(tmp_path):
    ranks, _ = hang(tmp_path, "data")
    assert [p.wait(30) for p in ranks] == [4, 4, 4]
    stopped = outcome.read(tmp_path)
    assert "rank 1 on" in stopped["error"]
    assert "did not arrive: data of step 3" in stopped["error"]
    assert "load_the_data" in stopped["error"]
    assert (stopped["exit_code"], stopped["next"]) == (4, "retry")
    stacks = {p.name: p.read_text() for p in tmp_path.glob("logs/hang-*/*.txt")}
    assert len(stacks) == 3
    assert "load_the_data" in stacks["rank-00001.txt"]
    assert (tmp_path / "events.log").read_text().count(" hang: ") == 1
    assert "rank 0: no progress for 2 s in step 3" in ranks[0].stderr.read()


@pytest.mark.multiprocess
def test_a_stopped_rank_is_named_by_the_others(tmp_path):
    ranks, _ = hang(tmp_path, "nobody")
    ranks[0].send_signal(signal.SIGSTOP)  # the one that would have told
    try:
        assert [ranks[r].wait(30) for r in (1, 2)] == [4, 4]
    finally:
        ranks[0].kill()
        ranks[0].wait()
    assert "rank 0 did not answer" in outcome.read(tmp_path)["error"]
    assert " hang: " in (tmp_path / "events.log").read_text()


def test_a_process_that_was_suspended_is_not_hanging(tmp_path):
    code = f"""
import sys, time
from megatron_lst.training.resilience.watchdog import Watchdog
with Watchdog({str(tmp_path)!r}, rank=0, world_size=1, seconds=2.0, grace=0.1) as dog:
    print("going", flush=True)
    for step in range(30): time.sleep(0.1); dog.beat(1) if step % 10 == 0 else None
"""
    rank = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert rank.stdout.readline() == "going\n"
    time.sleep(0.5)
    rank.send_signal(signal.SIGSTOP)
    time.sleep(3)
    rank.send_signal(signal.SIGCONT)
    assert rank.wait(30) == 0


def test_another_ranks_failure_ends_this_one(tmp_path):
    left: list[int] = []
    with Watchdog(tmp_path, rank=0, world_size=2, seconds=60, grace=0.2, peers=0.2, leave=left.append):
        time.sleep(1.5)
        assert left == []
        outcome.failed(tmp_path, TrainingFault("loss is nan"), rank=1, step=3)
        time.sleep(3.5)
    assert left
    assert set(left) == {4}
    assert json.loads((tmp_path / "STOPPED.json").read_text())["rank"] == 1


class CountedStore:
    """The ranks' store, as one dictionary; counts what each rank asks."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.checks = 0

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        self.checks += 1
        return keys[0] in self.values


@pytest.mark.parametrize("told_by_store", [True, False])
def test_one_rank_of_a_node_looks_and_the_store_tells_the_others(tmp_path, monkeypatch, told_by_store):
    """Looks at the run folder, of 16 ranks on two nodes; without the store each rank looks (the control)."""
    store, looks, left = CountedStore(), [], []
    read = outcome.read
    monkeypatch.setattr(outcome, "read", lambda folder: (looks.append(1), read(folder))[1])
    with contextlib.ExitStack() as stack:
        for rank in range(16):
            stack.enter_context(
                Watchdog(tmp_path, rank=rank, world_size=16, seconds=10, grace=0.1, peers=0.5,
                         store=store if told_by_store else None, local_rank=rank % 8, node_ranks=8, leave=left.append)
            )  # fmt: skip
        time.sleep(2.5)
        before = len(looks)
        assert left == []
        outcome.failed(tmp_path, TrainingFault("loss is nan"), rank=11, step=3)
        time.sleep(3.5)
    assert len(left) >= 16
    assert (before <= 2 * 5) == told_by_store
    assert bool(store.checks) == told_by_store


@pytest.mark.parametrize("ranks", [24, 2400])
def test_accounts_of_a_hang_are_opened_by_two_ranks(tmp_path, monkeypatch, ranks):
    """2 N in all, a thousand to a folder; rank 0 and the first of the next node compare."""
    from megatron_lst.training.resilience import watchdog

    opened = []
    monkeypatch.setattr(watchdog, "read_json", lambda path: (opened.append(path), read_json(path))[1])
    dogs = [
        Watchdog(tmp_path, rank=rank, world_size=ranks, seconds=10, grace=0.2, store=CountedStore(),
                 local_rank=rank % 8, node_ranks=8)
        for rank in range(ranks)
    ]  # fmt: skip
    for dog in dogs:
        dog.beat(3)
        dog._account(3).parent.mkdir(parents=True, exist_ok=True)
        write_json(dog._account(3), account(dog._rank, beats=4 if dog._rank == 17 else 5) | {"step": 3})
    assert [dog._rank for dog in dogs if dog._rank in dog._collectors] == [0, 8]
    assert (
        max(len(list(folder.iterdir())) for folder in [dogs[0]._account(3).parent, dogs[-1]._account(3).parent]) <= 1000
    )
    for rank in (0, 8):
        assert len(dogs[rank]._collect(3)) == ranks
    assert len(opened) == 2 * ranks
    assert "rank 17 on node17" in watchdog.explain(dogs[0]._collect(3), ranks)
