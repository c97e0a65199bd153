"""Runs of real processes that are killed, stopped, starved of disk, doubled and mixed up."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_lst.config.load import dump_yaml, load_config, read_yaml
from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import open_mixture
from megatron_lst.data.stream import Share
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set
from megatron_lst.training.checkpoint import complete_checkpoints
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.events import read_events
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TEXT_DOCUMENTS, TOKENIZER
from tests.training.slowly import SAVE_PHASES
from tests.training.tiny import curve, write_run

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]
SLOWLY = ("--module", "tests.training.slowly")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    write_run(folder, training={"steps": 24, "warmup_steps": 5}, checkpoint={"every": 2, "keep": 2})
    return folder


class Run:
    """Two ranks under one agent; everything that they say is kept."""

    def __init__(self, folder: Path, name: str, *overrides: str, agent: tuple[str, ...] = (), seconds: float = 0.0):
        self.run = folder / name
        path = os.pathsep.join([*(str(ROOT / part) for part in ("", "kernels", "data_prep"))])
        self.said = folder / f"{name}.txt"
        command = [sys.executable, "-m", "megatron_lst.launching.agent", "--processes", "2", *SLOWLY, *agent]
        environment = os.environ | {"PYTHONPATH": path, "LST_TEST_SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}
        with open(self.said, "a") as file:
            self.agent = subprocess.Popen(
                [*command, "--", "train", str(folder / "config.yaml"), f"run.dir={self.run}", *overrides],
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        children = psutil.Process(self.agent.pid).children()
        return sorted(children, key=lambda p: int(p.environ().get("LOCAL_RANK", "-1")))

    def steps(self) -> int:
        """Steps in metrics.jsonl."""
        file = self.run / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def wait_for_steps(self, steps: int, seconds: float = 240) -> bool:
        """Wait until so many steps are done; False if the run ended first."""
        end = time.monotonic() + seconds
        while self.steps() < steps:
            if self.agent.poll() is not None:
                return False
            assert time.monotonic() < end, self.said.read_text()
            time.sleep(0.02)
        return True

    def end(self, seconds: float = 300) -> int:
        """The exit code."""
        try:
            return self.agent.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(self.said.read_text()) from None

    def kill(self) -> None:
        if self.agent.poll() is None:
            for process in [*psutil.Process(self.agent.pid).children(recursive=True), psutil.Process(self.agent.pid)]:
                process.kill()
            self.agent.wait()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[int, tuple[float, float, str]]:
    with Run(folder, "undisturbed") as run:
        assert run.end() == 0, run.said.read_text()
    return curve(run.run)


def survive_kills(folder: Path, name: str, kills: int, undisturbed: dict, *overrides: str) -> None:
    """kill -9 of a random rank at a random moment, again and again; the curve must not show it."""
    draw = random.Random(kills)
    steps = len(undisturbed)
    for left in range(kills, 0, -1):
        with Run(folder, name, *overrides, seconds=0.05) as run:
            target = run.steps() + draw.randint(1, 4)
            assert run.wait_for_steps(min(target, steps - 2 * left)), run.said.read_text()
            while not run.ranks():  # killed again before its first step, perhaps while it reads the checkpoint
                time.sleep(0.02)
            time.sleep(draw.random() * 0.2)
            everyone = psutil.Process(run.agent.pid).children(recursive=True)
            begin = time.monotonic()
            draw.choice(run.ranks()).kill()
            assert run.end(60) == 137, run.said.read_text()
            assert time.monotonic() - begin < 45, "the other rank did not end within seconds"
            _, left_over = psutil.wait_procs(everyone, timeout=10)
            assert not left_over, "processes that outlive their rank fill the node"
    with Run(folder, name, *overrides) as run:
        assert run.end() == 0, run.said.read_text()
        assert run.said.read_text().count("was killed by SIGKILL") == kills
    assert curve(folder / name) == undisturbed
    assert outcome.read(folder / name)["state"] == "finished"
    for checkpoint in complete_checkpoints(folder / name):
        assert checkpoint.damaged_files() == []
    times = [event.time for event in read_events(folder / name / "events.log")]
    assert times == sorted(times)


def test_a_killed_rank_leaves_no_trace_in_the_curve(folder, undisturbed):
    survive_kills(folder, "killed-once", 1, undisturbed, "checkpoint.asynchronous=false")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_twenty_killed_ranks_leave_no_trace_in_the_curve(folder, asynchronous):
    longer = "training.steps=80"
    with Run(folder, f"calm-{asynchronous}", longer) as run:
        assert run.end() == 0, run.said.read_text()
    overrides = (longer, f"checkpoint.asynchronous={asynchronous}")
    survive_kills(folder, f"killed-{asynchronous}", 20, curve(run.run), *overrides)


@pytest.fixture(scope="module")
def calm(folder: Path) -> dict[int, tuple[float, float, str]]:
    """The curve of eight undisturbed steps."""
    with Run(folder, "calm", "training.steps=8") as run:
        assert run.end() == 0, run.said.read_text()
    return curve(run.run)


@pytest.mark.slow
@pytest.mark.parametrize("phase", SAVE_PHASES)
def test_a_kill_in_any_phase_of_a_save_leaves_no_trace(folder, calm, monkeypatch, phase):
    """Of the second checkpoint, or the first one's removal: the newest complete one is the first until the rename, and
    the second from there on. The run that goes on from it ends as if nothing had been."""
    name = f"killed-in-{phase.replace(' ', '-')}"
    run_folder = folder / name / "checkpoints"
    options = ("training.steps=8", "checkpoint.asynchronous=true", "checkpoint.keep=1")
    monkeypatch.setenv("LST_TEST_KILL", phase)
    monkeypatch.setenv("LST_TEST_KILL_AFTER", str(run_folder / "step-00000002"))
    with Run(folder, name, *options, seconds=0.05) as run:
        assert run.end() == 137, run.said.read_text()
    assert "was killed by SIGKILL" in run.said.read_text()
    newest = complete_checkpoints(folder / name)[-1]
    assert newest.step >= 4 if phase in ("marker", "retention") else newest.step == 2
    assert newest.damaged_files() == []
    assert set(range(1, newest.step + 1)) <= curve(folder / name).keys(), "records are there before their checkpoint"
    monkeypatch.delenv("LST_TEST_KILL")
    with Run(folder, name, *options) as run:
        assert run.end() == 0, run.said.read_text()
    assert curve(folder / name) == calm
    assert [c.step for c in complete_checkpoints(folder / name)] == [8]
    assert not list(run_folder.glob("*.tmp")) + list(run_folder.glob("*.removed"))


@pytest.mark.slow
def test_a_stopped_rank_is_named(folder, undisturbed):
    with Run(folder, "stopped", "training.hang_seconds=60", seconds=0.1) as run:
        assert run.wait_for_steps(5)
        run.ranks()[1].send_signal(signal.SIGSTOP)
        assert run.end(300) == 4, run.said.read_text()
    stopped = outcome.read(run.run)
    assert "rank 1 did not answer" in stopped["error"]
    assert stopped["next"] == "retry"
    stacks = list(run.run.glob("logs/hang-*/rank-00000.txt"))
    assert len(stacks) == 1
    assert "engine" in stacks[0].read_text()
    assert "hang" in [event.kind for event in read_events(run.run / "events.log")]
    with Run(folder, "stopped") as run:
        assert run.end() == 0, run.said.read_text()
    assert curve(run.run) == undisturbed


def test_a_second_run_on_the_folder_is_refused_and_the_first_goes_on(folder, undisturbed):
    with Run(folder, "doubled", seconds=0.1) as first:
        assert first.wait_for_steps(2)
        for rank in first.ranks():  # however long the second takes to start
            rank.suspend()
        with Run(folder, "doubled") as second:
            assert second.end() == 2
        assert "belongs to a run that is alive" in second.said.read_text()
        for rank in first.ranks():
            rank.resume()
        assert first.end() == 0, first.said.read_text()
    assert curve(first.run) == undisturbed


@pytest.mark.slow
def test_the_same_job_requeued_takes_over_and_its_orphan_stops(folder, undisturbed, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with Run(folder, "requeued", seconds=0.4) as orphan:
        assert orphan.wait_for_steps(3)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with Run(folder, "requeued") as winner:
            assert winner.end() == 0, winner.said.read_text()
            assert orphan.end(60) != 0
    assert "was taken over by job 4711 (restart 1)" in orphan.said.read_text()
    assert curve(winner.run) == undisturbed
    assert outcome.read(winner.run)["state"] == "finished"


@pytest.mark.slow
def test_a_slow_rank_is_named(folder, undisturbed, monkeypatch):
    monkeypatch.setenv("LST_TEST_SLOW_RANK", "1")
    with Run(folder, "slow", "training.straggler_every=12") as run:
        assert run.end() == 0, run.said.read_text()
    slow = [
        event for event in read_events(run.run / "events.log") if event.kind == "slow" and " in data" in event.message
    ]
    assert [event.step for event in slow] == [12, 24]
    assert all(event.message.startswith(f"rank 1 on {socket.gethostname()} is ") for event in slow)
    assert curve(run.run) == undisturbed


def test_a_rank_with_another_configuration_is_refused_with_both_named(folder):
    port = free_port()
    values = read_yaml(folder / "config.yaml")
    other = folder / "other"
    other.mkdir()
    (other / "config.yaml").write_text(dump_yaml({**values, "training": {**values["training"], "lr": 0.5}}))
    network = ("--processes", "1", "--nodes", "2", "--address", "127.0.0.1", "--port", str(port))
    with (
        Run(folder, "mixed", agent=(*network, "--node-rank", "0")) as one,
        Run(other, "mixed", f"run.dir={folder / 'mixed'}", agent=(*network, "--node-rank", "1")) as two,
    ):
        assert [one.end(), two.end()] == [2, 2]
    host = socket.gethostname()
    for run in (one, two):
        assert f"rank 1 on {host} differs from rank 0 on {host}: training.lr is 0.5, not 0.001" in run.said.read_text()
    assert not (folder / "mixed" / "metrics.jsonl").exists()


def _damage_a_share_of(config: Config, rank: int) -> None:
    """Flip a byte in every second text shard that only this one of two ranks reads."""
    source = next(source for source in config.data.sources if source.kind == "text")
    mixture = open_mixture(config, [source], config.streams)
    documents, owned = mixture.documents[0], mixture.ownership[0]

    def shards_of(rank: int) -> set[int]:
        streams = Share(config.training.global_batch, config.streams, rank, 2).owned_streams()
        blocks = [owned.of(stream)[0] for stream in streams]
        return {documents.shard_of(first) for begin in blocks for first in begin.tolist()}

    shards = ShardSet.open(source.shards[0])
    for shard in sorted(shards_of(rank) - shards_of(1 - rank))[::2]:
        path = Path(source.shards[0]) / shards.shard_name(shard)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_an_error_in_one_ranks_data_ends_all_with_its_cause(tmp_path, workers):
    """Of the other rank nobody hears but this: what it lost its peer to, and the same exit code."""
    write_set(tmp_path / "sets" / "text", TEXT_DOCUMENTS, "text", TOKENIZER, size_limit=4096)
    write_set(tmp_path / "sets" / "speech", SPEECH_DOCUMENTS, "speech", TOKENIZER, CODEBOOK)
    _damage_a_share_of(load_config(write_run(tmp_path, training={"steps": 40})), rank=1)
    with Run(tmp_path, "damaged", f"data.workers={workers}") as run:
        assert run.end() == 3, run.said.read_text()
        ended = time.time()
    said = run.said.read_text()
    stopped = outcome.read(run.run)
    assert (stopped["rank"], stopped["exit_code"], stopped["next"]) == (1, 3, "stop")
    assert "DamagedDataError" in stopped["error"]
    assert ended - stopped["time"] < 30
    assert said.count(f"error: rank 1 on {socket.gethostname()} failed: {stopped['error']}") == 1
    assert "Traceback" not in said
    assert f"error: {stopped['error'].partition(': ')[2]}" in said


def test_a_killed_data_worker_ends_all_ranks_with_its_cause(folder):
    """Once the rows that it had sent are used up."""
    endless = ("training.steps=100000", "checkpoint.every=100000")
    with Run(folder, "worker-killed", "data.workers=1", *endless) as run:
        assert run.wait_for_steps(3)
        workers = [p for p in run.ranks()[1].children() if any("data.worker" in part for part in p.cmdline())]
        assert len(workers) == 1
        workers[0].kill()
        assert run.end(120) == 4, run.said.read_text()
    stopped = outcome.read(run.run)
    assert stopped["rank"] == 1
    assert f"data worker 0 (pid {workers[0].pid}) died: killed by SIGKILL (out of memory?)" in stopped["error"]
    assert f"rank 1 on {socket.gethostname()} failed: {stopped['error']}" in run.said.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(folder):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        network = ("--nodes", "1", "--node-rank", "0", "--address", "127.0.0.1", "--port", str(taken.getsockname()[1]))
        with Run(folder, "port", agent=network) as run:
            assert run.end(200) == 1
    assert "address already in use" in run.said.read_text().lower()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root and a kernel that allows it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("relief", [True, False])
def test_a_full_disk_costs_checkpoints_and_then_the_run(folder, small_disk, undisturbed, relief):
    run_dir = small_disk / "run"
    filler = small_disk / "filler"
    options = (f"run.dir={run_dir}", "checkpoint.retries=1", "checkpoint.max_failures=3")
    with Run(folder, f"full-{relief}", *options, seconds=0.4) as run:
        run.run = run_dir
        assert run.wait_for_steps(5)
        filler.write_bytes(bytes(max(0, os.statvfs(small_disk).f_bavail * 4096 - 600_000)))
        end = time.monotonic() + 100
        while "checkpoint_failed" not in (run_dir / "events.log").read_text():
            assert time.monotonic() < end, run.said.read_text()
            time.sleep(0.1)
        if relief:
            filler.unlink()
        code = run.end()
    said = run.said.read_text()
    if relief:
        assert code == 0, said
        assert curve(run_dir) == undisturbed
    else:
        assert code == 4, said
        assert "could not be written" in said
        filler.unlink()
        with Run(folder, f"full-{relief}", *options) as again:
            assert again.end() == 0, again.said.read_text()
        assert curve(run_dir) == undisturbed
    assert all(checkpoint.damaged_files() == [] for checkpoint in complete_checkpoints(run_dir))
