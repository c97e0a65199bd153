"""A Ray cluster that changes: nodes join, workers and nodes are killed."""

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.test_ray import NODE, cluster, go, log_of, squares  # noqa: F401 - a fixture

pytestmark = pytest.mark.multiprocess
KILLS = 10


@pytest.mark.slow
def test_a_node_that_joins_gets_work(tmp_path: Path, cluster: Any) -> None:  # noqa: F811
    with ThreadPoolExecutor(1) as other:  # Ray starts nodes from the main thread alone
        going = other.submit(go, tmp_path, "slow 1", items=40)
        while len(log_of(tmp_path)) < 3 and not going.done():
            time.sleep(0.1)
        joined = cluster.add_node(**NODE)
        assert going.result() == squares(40)
    cluster.remove_node(joined)
    assert joined.node_id in {node for _, node, _ in log_of(tmp_path)}


@pytest.mark.slow
def test_random_kills_of_workers_and_nodes_end_with_the_same_files(tmp_path: Path, cluster: Any) -> None:  # noqa: F811
    draws, killed = random.Random(0), list[str]()
    with ThreadPoolExecutor(1) as other:
        going = other.submit(go, tmp_path, "slow 0.8", items=60, attempts=KILLS + 1)
        while len(killed) < KILLS and not going.done():
            time.sleep(1.0)
            lines = log_of(tmp_path)
            if lines and draws.random() < 0.3:
                cluster.remove_node(draws.choice(sorted(cluster.worker_nodes, key=str)), allow_graceful=False)
                cluster.add_node(**NODE)
                killed.append("node")
            elif lines:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(draws.choice(lines[-3:])[2]), signal.SIGKILL)
                    killed.append("worker")
        assert going.result() == squares(60)
    assert len(killed) == KILLS and set(killed) == {"node", "worker"}
    assert [(tmp_path / f"{item}.txt").read_bytes() for item in range(60)] == [b"x" * item for item in range(60)]
