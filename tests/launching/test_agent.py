"""The agent: exit codes that mean something, the first error first, signals that reach the ranks."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_lst.errors import UserError
from megatron_lst.launching.agent import exit_code, interface_towards, parse, torchrun_arguments

ROOT = Path(__file__).resolve().parents[2]


def test_numbers_of_nodes_come_from_slurm():
    environment = {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "21000"}
    options, command = parse(["--processes", "8", "--", "train", "c.yaml", "a=b"], environment)
    assert command == ["train", "c.yaml", "a=b"]
    arguments = torchrun_arguments(options, command)
    assert {"--nnodes=4", "--node-rank=2", "--nproc-per-node=8", "--master-addr=n1", "--master-port=21000"} <= set(
        arguments
    )
    assert arguments[-5:] == ["-m", "megatron_lst", "train", "c.yaml", "a=b"]


def test_one_node_finds_a_port_by_itself():
    options, command = parse(["--", "train", "c.yaml"], {})
    assert "--standalone" in torchrun_arguments(options, command)


@pytest.mark.parametrize(
    "arguments", [[], ["--nodes", "2", "--", "train"], ["--nodes", "1", "--node-rank", "1", "--", "train"]]
)
def test_what_cannot_work_is_refused(arguments):
    with pytest.raises(UserError):
        parse(arguments, {})


@pytest.mark.parametrize("name", ["MASTER_PORT", "SLURM_NNODES", "SLURM_NODEID"])
@pytest.mark.parametrize(
    "text", ["", "tcp://10.0.0.1:29500", "-1", "1.5", " 8", "0x10", "１", "9" * 5000, "99999999999"]
)
def test_what_a_launcher_left_in_the_environment_and_is_no_number_is_a_sentence(name, text):
    with pytest.raises(UserError, match=f"{name}='.*in the environment: expected a whole number"):
        parse(["--", "train", "c.yaml"], {name: text})
    options = {"MASTER_PORT": "--port", "SLURM_NNODES": "--nodes", "SLURM_NODEID": "--node-rank"}
    own = [options[name], "1" if name != "SLURM_NODEID" else "0", "--", "train"]
    assert parse(own, {name: text})[1] == ["train"], "what is given here needs no variable"


@pytest.mark.parametrize("port", ["0", "65536"])
def test_ports_are_ports(port):
    with pytest.raises(UserError, match="from 1 to 65535"):
        parse(["--", "train"], {"MASTER_PORT": port})
    assert parse(["--", "train"], {"MASTER_PORT": "65535"})[0].port == 65535
    if port != "0":
        with pytest.raises(UserError, match="--port at most 65535"):
            parse(["--port", port, "--", "train"], {})


def test_a_step_that_srun_started_by_hand_finds_its_first_node():
    """Also where scontrol is not there to expand the list."""
    environment = {"SLURM_NNODES": "3", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[07-09]", "MASTER_PORT": "29500"}
    assert parse(["--", "train"], environment)[0].address == "gpu07"
    assert parse(["--", "train"], environment | {"SLURM_STEP_NODELIST": "gpu[08-10]"})[0].address == "gpu08"
    assert parse(["--", "train"], environment | {"MASTER_ADDR": "here"})[0].address == "here"
    for address in ("gpu[07-09]", "a,b", "a b"):
        with pytest.raises(UserError, match="--address"):
            parse(["--", "train"], environment | {"MASTER_ADDR": address})


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": ""}, ["WORLD_SIZE=''"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE='two'"]),
        ({"WORLD_SIZE": "2"}, ["MASTER_ADDR", "MASTER_PORT", "RANK", "torchrun"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": ""}, ["MASTER_PORT=''"]),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "tcp://x:1"},
            ["MASTER_PORT='tcp"],
        ),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, ["RANK=2", "below"]),
        ({"WORLD_SIZE": "1", "RANK": "x"}, ["RANK='x'"]),
        ({"LOCAL_RANK": ""}, ["LOCAL_RANK=''"]),
    ],
)
def test_ranks_that_cannot_meet_are_told_why(monkeypatch, environment, words):
    """`lst train` by itself, under a launcher that is not ours."""
    from megatron_lst.parallel.state import start_world

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        start_world()
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("codes", "expected"), [([1], 1), ([1, 4], 4), ([-9], 137), ([1, -9], 137), ([-15, 2], 2), ([3, 4], 3), ([77], 77)]
)
def test_exit_codes(codes, expected):
    assert exit_code(codes) == expected


def test_the_interface_of_loopback():
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("localhost") == "lo"
    assert interface_towards("no.such.host.invalid") is None


def test_a_first_node_whose_own_name_is_loopback_is_reached_over_its_network(monkeypatch):
    """/etc/hosts of Debian: `127.0.1.1 node-a`. Its peers cannot connect to what listens there."""
    outside = interface_towards("192.0.2.1")
    if outside is None:
        pytest.skip("this machine has no default route")
    resolve = socket.getaddrinfo

    def with_own_name(host, *arguments, **options):
        return resolve("127.0.1.1" if host == "node-a" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", with_own_name)
    assert interface_towards("node-a") == outside
    assert interface_towards("127.0.1.1") == "lo"


RANKS = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
what = sys.argv[2]
if what == "signal":
    got = []
    (folder / f"early{rank}").touch()
    while not (folder / "listen").exists(): time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, f: got.append(n))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    (folder / f"ready{rank}").touch()
    while not got: time.sleep(0.05)
    time.sleep(0.5)
    (folder / f"saved{rank}").write_text(str(got[0]))
elif what == "fail":
    if rank == 1:
        print("the loss was nan", file=sys.stderr)
        sys.exit(4)
    time.sleep(120)
elif what == "killed":
    if rank == 0: os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)
"""


def start(folder: Path, what: str) -> subprocess.Popen:
    (folder / "stand_in_ranks.py").write_text(RANKS)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "megatron_lst.launching.agent", "--processes", "2", "--logs", str(folder / "logs")]
    return subprocess.Popen(
        [*command, "--module", "stand_in_ranks", "--", str(folder), what],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_two(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.multiprocess
def test_a_signal_to_ranks_that_still_start_waits_for_them(tmp_path):
    agent = start(tmp_path, "signal")
    wait_for_two(tmp_path, "early*")
    agent.send_signal(signal.SIGUSR1)
    time.sleep(1)
    assert agent.poll() is None
    (tmp_path / "listen").touch()
    assert agent.wait(60) == 0
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGUSR1))] * 2


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_ranks_and_they_may_save(tmp_path, number):
    agent = start(tmp_path, "signal")
    (tmp_path / "listen").touch()
    wait_for_two(tmp_path, "ready*")
    agent.send_signal(number)
    assert agent.wait(60) == 0
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2


@pytest.mark.multiprocess
def test_a_rank_that_fails_ends_the_others_and_is_shown_first(tmp_path):
    begin = time.monotonic()
    agent = start(tmp_path, "fail")
    said = agent.communicate(timeout=100)[1]
    assert agent.returncode == 4
    assert (tmp_path / "logs" / "node0000" / "exit_code").read_text() == "4\n"
    assert "rank 1 on " in said
    assert "failed first: exit code 4" in said
    assert "  the loss was nan" in said
    assert time.monotonic() - begin < 60


@pytest.mark.multiprocess
def test_a_killed_rank_is_told_by_its_signal(tmp_path):
    agent = start(tmp_path, "killed")
    said = agent.communicate(timeout=100)[1]
    assert agent.returncode == 137
    assert "rank 0 on " in said
    assert "was killed by SIGKILL" in said
