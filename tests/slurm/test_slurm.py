"""Training on a real SLURM cluster (two slurmd on loopback): every curve equals the undisturbed one, step for step."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_lst.config.load import read_yaml
from megatron_lst.launching.hosts import expand_hosts
from megatron_lst.launching.slurm import SlurmOptions, prep_script, train_script
from megatron_lst.training.resilience.events import read_events
from tests.launching.test_hosts import LISTS
from tests.slurm.cluster import PACKAGES, Cluster
from tests.support.debian import missing_programs
from tests.training.tiny import curve, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing_programs(PACKAGES):
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where config, shards and all runs of this module are."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder, training={"steps": STEPS, "warmup_steps": 5}, checkpoint={"every": 10, "keep": 0})
    return folder


def submit(cluster: Cluster, folder: Path, name: str, seconds: float, **options) -> str:
    """Submit a two-node run with a pause of some seconds before each step; the job's id.

    The run holds still for as long as there is a file `hold` in its folder.
    """
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "data_prep"))
    wanted = {"nodes": 2, "gpus": 0, "processes": 1, "cpus": 1, "time": "10:00", "signal_seconds": 45} | options
    environment = (f"LST_TEST_SECONDS={seconds}", f"LST_TEST_HOLD={folder / name / 'hold'}")
    script = train_script(
        str(folder / "config.yaml"),
        [f"run.dir={folder / name}"],
        str(folder / name),
        SlurmOptions(**wanted, env=(f"PYTHONPATH={path}", *environment), work_dir=str(ROOT)),
    )
    script = script.replace("launching.agent", "launching.agent --module tests.training.slowly")
    (folder / name / "logs").mkdir(parents=True)
    (folder / name / "launch.sbatch").write_text(script)
    return cluster.submit(str(folder / name / "launch.sbatch"))


def story(run: Path) -> str:
    """Everything that the run and its job said."""
    return "\n".join(path.read_text() for path in [*run.glob("logs/slurm-*.txt"), run / "events.log"] if path.exists())


def finish(cluster: Cluster, job: str, run: Path, seconds: float = 900) -> dict[str, str]:
    """Wait for the job's end, which must be a good one."""
    try:
        state = cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", seconds=seconds)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{story(run)}") from None
    assert state["JobState"] == "COMPLETED", story(run)
    return state


def wait_for_step(cluster: Cluster, run: Path, step: int) -> None:
    """Wait for a checkpoint."""
    cluster.wait((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists, 600, f"step {step}: {story(run)}")


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, folder: Path) -> dict[int, tuple[float, float, str]]:
    """The curve of a two-node job that nothing happens to."""
    job = submit(cluster, folder, "undisturbed", 0)
    finish(cluster, job, folder / "undisturbed")
    return curve(folder / "undisturbed")


def test_a_job_on_two_nodes_finishes(cluster, folder, undisturbed):
    run = folder / "undisturbed"
    assert list(undisturbed) == list(range(1, STEPS + 1))
    assert '"next": "finished"' in (run / "STOPPED.json").read_text()
    logs = [path.read_text() for path in run.glob("logs/job-*/node*/*/attempt_0/0/stdout.log")]
    assert len(logs) == 2
    assert read_yaml(run / "config.yaml")["training"]["steps"] == STEPS


def test_a_job_that_takes_no_environment_along_and_whose_folder_has_a_percent_sign(cluster, folder, monkeypatch):
    """sbatch --export=NONE, as many sites ask for, and its variable for srun, which some set for everybody."""
    run = folder / "mix-30%j speech"
    monkeypatch.setitem(cluster.environment, "SLURM_EXPORT_ENV", "NONE")
    monkeypatch.setitem(cluster.environment, "NOT_TAKEN_ALONG", "1")
    options = {"extra": ("--export=NONE",)}
    job = submit(cluster, folder, run.name, 0, **options)
    finish(cluster, job, run)
    assert len(curve(run)) == STEPS
    assert (run / "logs" / f"slurm-{job}.txt").exists()
    assert "saved" not in story(run)
    step = 'printenv > "$run_dir/seen"; srun --export=ALL --nodes=1 --ntasks=1 printenv MASTER_ADDR PYTHONPATH; '
    step += "srun --nodes=1 --ntasks=1 printenv PYTHONPATH || echo the control: lost; exit 0\n"
    script = (run / "launch.sbatch").read_text().replace("# ---- helpers", f"{step}# ---- helpers")
    (run / "control.sbatch").write_text(script)
    job = cluster.submit(str(run / "control.sbatch"))
    cluster.wait_for(job, "COMPLETED", "FAILED")
    said = (run / "logs" / f"slurm-{job}.txt").read_text().splitlines()
    assert said[:2] == ["127.0.0.1", os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "data_prep"))], said
    assert said[-1] == "the control: lost", said
    assert "NOT_TAKEN_ALONG" not in (run / "seen").read_text()


NOT_SLURMS = ("::", " ", "].")  # what SLURM does not read: IPv6, blanks, a domain after the brackets


@pytest.mark.parametrize(("text", "hosts"), [p for p in LISTS if not any(sign in p[0] for sign in NOT_SLURMS)])
def test_lists_of_hosts_mean_what_they_mean_to_slurm(cluster, text, hosts):
    assert cluster.run("scontrol", "show", "hostnames", text).split() == hosts == expand_hosts(text)


def test_a_preempted_job_goes_on_after_requeue(cluster, folder, undisturbed):
    run = folder / "preempted"
    job = submit(cluster, folder, "preempted", 0.3, partition="low")
    wait_for_step(cluster, run, 10)
    urgent = cluster.submit(
        "--partition=high", "--nodes=2", "--exclusive", f"--output={folder}/urgent.txt", "--wrap=sleep 3"
    )
    state = finish(cluster, job, run)
    assert cluster.job(urgent)["JobState"] == "COMPLETED"
    assert state["Restarts"] == "1", story(run)
    assert "ended with exit code 0, requeue" in story(run)
    assert "stop: saved after SIGUSR1" in story(run)
    assert curve(run) == undisturbed


def test_a_time_limit_is_a_pause(cluster, folder, undisturbed):
    run = folder / "limited"
    job = submit(cluster, folder, "limited", 1.5, time="2:00", signal_seconds=45)
    state = finish(cluster, job, run, seconds=1500)
    assert int(state["Restarts"]) >= 1, story(run)
    assert "stop: saved after SIGUSR1" in story(run)
    assert curve(run) == undisturbed


def kill_a_rank(run: Path) -> None:
    """kill -9 of one rank of a run."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "tests.training.slowly" in line and f"run.dir={run}" in line and "launching.agent" not in " ".join(line):
            process.send_signal(signal.SIGKILL)
            return
    raise AssertionError(f"no rank of {run} is running")


def test_a_killed_rank_and_a_killed_node(cluster, folder, undisturbed):
    run = folder / "killed"
    job = submit(cluster, folder, "killed", 0.4)
    wait_for_step(cluster, run, 10)
    kill_a_rank(run)
    wait_for_step(cluster, run, 20)
    assert "was killed by SIGKILL" in story(run)
    assert "attempt 1" in story(run)
    # The controller takes half a minute to believe that a node is gone, and its ranks live on: none may end sooner.
    (run / "hold").touch()
    cluster.kill_node("n2")
    try:
        cluster.wait(lambda: cluster.job(job).get("Restarts") == "1", 120, f"the requeue: {story(run)}")
    finally:
        (run / "hold").unlink()
        cluster.start_node("n2")
    state = finish(cluster, job, run)
    assert state["Restarts"] == "1"
    assert curve(run) == undisturbed
    assert [e.time for e in read_events(run / "events.log")] == sorted(e.time for e in read_events(run / "events.log"))


def test_a_mistake_in_the_configuration_ends_the_job_at_once(cluster, folder):
    run = folder / "mistaken"
    (folder / "config-bad.yaml").write_text((folder / "config.yaml").read_text() + "traning: {}\n")
    job = submit(cluster, folder, "mistaken", 0)
    script = (run / "launch.sbatch").read_text().replace("config.yaml", "config-bad.yaml")
    cluster.run("scancel", job)
    (run / "launch.sbatch").write_text(script)
    start = time.monotonic()
    job = cluster.submit(str(run / "launch.sbatch"))
    state = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=200)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0"), story(run)
    assert "did you mean 'training'?" in story(run)
    assert story(run).count("attempt") <= 2  # the cancelled job may have said one
    assert time.monotonic() - start < 150


def test_an_array_prepares_data_and_survives_a_killed_task(cluster, folder):
    out = folder / "prepared"
    config = folder / "prep.yaml"
    manifest = (ROOT / "data_prep" / "corpus" / "manifest.jsonl").read_text().splitlines()[:24]
    (folder / "manifest.jsonl").write_text("\n".join(absolute(line) for line in manifest) + "\n")
    config.write_text(
        f"out: {out}\nmanifests: [{folder / 'manifest.jsonl'}]\n"
        f"align:\n  pronunciations: [{ROOT / 'data_prep' / 'corpus' / 'pronunciations.txt'}]\n  flite: false\n"
        "jobs:\n  item_pieces: 2\n  workers: 1\n"
    )
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "data_prep"))
    for stage in ("manifest", "codebook"):
        done = subprocess.run(
            [sys.executable, "-m", "megatron_lst", "prep", stage, str(config)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    options = SlurmOptions(gpus=0, cpus=1, time="10:00", env=(f"PYTHONPATH={path}",), work_dir=str(ROOT))
    script = prep_script(["prep", "units", str(config)], 3, 2, str(folder / "prep-logs"), options)
    (folder / "prep-logs").mkdir()
    (folder / "prep.sbatch").write_text(script)
    job = cluster.submit(str(folder / "prep.sbatch"))
    cluster.wait(lambda: kill_a_task(config), 100, "a task to kill")
    cluster.wait(lambda: not cluster.run("squeue", "-h", "-j", job).strip(), 300, f"the array {job}")
    said = {path.name: path.read_text() for path in (folder / "prep-logs").glob("slurm-*.txt")}
    assert len(said) == 3
    assert all("ended with exit code 0" in text for text in said.values()), said
    assert sum("start 1" in text for text in said.values()) == 1, said
    done = subprocess.run(
        [sys.executable, "-m", "megatron_lst", "prep", "units", str(config)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def absolute(line: str) -> str:
    """A manifest's line with its audio's path made absolute."""
    entry = json.loads(line)
    entry["audio"] = str(ROOT / "data_prep" / "corpus" / entry["audio"])
    return json.dumps(entry)


def kill_a_task(config: Path) -> bool:
    """kill -9 of the first task that works on this preparation."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(config) in line and "--items" in line and "srun" not in line[0]:
            process.kill()
            return True
    return False
