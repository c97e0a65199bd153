"""A cluster that `ray start` made: reached from outside, asking for a token, and without its head in the middle."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.data_prep.test_ray import log_of, squares
from tests.support.loopback import only_loopback

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
PORT, CLIENTS = 6399, 10001
ITEMS = 30
COMMAND = """
import sys
from pathlib import Path
from tests.data_prep.test_ray import go
print(go(Path(sys.argv[1]), "slow 0.5", items=int(sys.argv[2]), address=sys.argv[3], quiet=False))
"""


def ray(*arguments: str) -> None:
    program = str(Path(sys.executable).with_name("ray"))
    subprocess.run([program, *arguments], check=True, capture_output=True, timeout=120)


def start_head() -> None:
    ray(
        "start", "--head", "--node-ip-address", "127.0.0.1", "--port", str(PORT), "--num-cpus", "2",
        "--ray-client-server-port", str(CLIENTS), "--include-dashboard", "false",
        "--object-store-memory", str(100 << 20),
    )  # fmt: skip


def kill_head() -> None:
    """Its control process, its node and their helpers, as when the machine is gone (`ray stop` would end others)."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(PORT) in line and ("gcs_server" in line or "raylet" in line or "site-packages/ray/" in line):
            process.kill()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.50,<3'")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # `ray start` asks for a token where one lies in ~/.ray
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # a minute by default
    with only_loopback():
        yield
        kill_head()


def command(folder: Path, address: str = f"127.0.0.1:{PORT}", items: int = ITEMS) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", COMMAND, str(folder), str(items), address]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


def test_a_lost_head(tmp_path: Path, network: None) -> None:
    start_head()
    first = command(tmp_path)
    while len(log_of(tmp_path)) < 8 and first.poll() is None:
        time.sleep(0.1)
    kill_head()
    said, _ = first.communicate(timeout=120)
    assert first.returncode not in (0, -signal.SIGKILL), said
    before = sorted(int(path.stem) for path in (tmp_path / "work").rglob("receipts/*/*.json"))
    assert 4 < len(before) < ITEMS, said

    start_head()
    again = command(tmp_path)
    said, _ = again.communicate(timeout=120)
    assert str(squares(ITEMS)) in said
    done = [int(item) for item, *_ in log_of(tmp_path)]
    assert [item for item in before if done.count(item) != 1] == [], "what has a receipt is not done again"
    assert set(done) == set(range(ITEMS))


def test_from_outside_by_rays_client(tmp_path: Path, network: None) -> None:
    start_head()
    said, _ = command(tmp_path, f"ray://127.0.0.1:{CLIENTS}", 8).communicate(timeout=120)
    assert str(squares(8)) in said
    assert "1 nodes, 2 CPUs" in said and "prep units: 8/8" in said


def test_a_cluster_that_asks_for_a_token_says_so(
    tmp_path: Path, network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as heads:
        heads.setenv("RAY_AUTH_MODE", "token")
        heads.setenv("RAY_AUTH_TOKEN", "a" * 32)
        start_head()
    said, _ = command(tmp_path).communicate(timeout=120)
    assert "asks for a token: set RAY_AUTH_MODE=token" in said
    assert log_of(tmp_path) == []
