"""The job script: readable, valid bash, and no value of the user's is ever run."""

import os
import signal
import subprocess
import time

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.launch import launch_app
from megatron_lst.errors import UserError
from megatron_lst.launching.slurm import SlurmOptions, prep_script, submit, train_script
from megatron_lst.launching.templates import fill, template_folder
from tests.training.tiny import write_run

NASTY = ["run.dir='; touch {mark}; '", "a=$(touch {mark})", "b=`touch {mark}`", 'c="x" & touch {mark}', "d=ü *"]


def check_syntax(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def value_of(script: str, name: str, folder: str) -> list[str]:
    """Run the script's assignments up to `cd` and print an array."""
    head = script[: script.index("\ncd ")]
    done = subprocess.run(
        ["bash", "-c", f'{head}\nprintf "%s\\0" "${{{name}[@]}}"'],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    return done.stdout.split("\0")[:-1]


def wait_until(condition, seconds=20):
    """Wait for a condition, not for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_values_reach_the_program_as_they_are_and_are_not_run(tmp_path):
    mark = tmp_path / "ran"
    overrides = [text.format(mark=mark) for text in NASTY]
    run_dir = f"{tmp_path}/$(touch {mark})'x"
    script = train_script("configs/a b.yaml", overrides, run_dir, SlurmOptions(env=(f"A=$(touch {mark})",)))
    check_syntax(script)
    assert value_of(script, "command", str(tmp_path)) == ["train", "configs/a b.yaml", *overrides]
    assert value_of(script, "run_dir", str(tmp_path)) == [run_dir]
    setup = "\n".join(line for line in script.splitlines() if line.startswith("export A="))
    done = subprocess.run(["bash", "-c", f'{setup}; printf %s "$A"'], capture_output=True, text=True, check=True)
    assert done.stdout == f"$(touch {mark})"
    assert not mark.exists()


def test_what_the_scheduler_is_told():
    script = train_script(
        "c.yaml",
        [],
        "runs/a",
        SlurmOptions(
            nodes=4, gpus=8, cpus=96, time="1-00", partition="gpu", exclusive=True, extra=("--gres=gpu:h100:8",)
        ),
    )
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--time=1-00",
        "--signal=B:USR1@300",
        "--requeue",
        "--partition=gpu",
        "--exclusive",
        "--open-mode=append",
        "--gres=gpu:h100:8",
    } <= set(directives)
    assert 'OMP_NUM_THREADS="${OMP_NUM_THREADS:-12}"' in script
    assert "processes=8" in script
    assert "account" not in script
    assert "localhost" not in script
    assert "@" not in script.replace("USR1@300", "").replace("[@]", "")


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": 0},
        {"cpus": -1},
        {"time": "tomorrow"},
        {"partition": "a b"},
        {"account": "x\n#SBATCH --uid=0"},
        {"extra": ("--gres=gpu:8\nrm -rf /",)},
        {"extra": ("rm",)},
        {"env": ("no value",)},
        {"env": ("A=line\nbreak",)},
        {"modules": ("a; b",)},
        {"interface": "eth0; id"},
        {"container": "a", "venv": "b"},
        {"container": "a", "mounts": ("nowhere",)},
        {"runtime": "podman"},
        {"signal_seconds": 3},
        {"name": "x y"},
    ],
)
def test_what_cannot_stand_in_a_script_is_refused(options):
    with pytest.raises(UserError):
        train_script("c.yaml", [], "runs/a", SlurmOptions(**options))


def test_a_run_folder_that_sbatch_cannot_write_is_refused():
    with pytest.raises(UserError):
        train_script("c.yaml", [], 'runs/a"b', SlurmOptions())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"container": "img+tag.sqsh"}, "--container-image=img+tag.sqsh"),
        ({"container": "img.sif", "runtime": "apptainer"}, "apptainer exec --nv"),
        ({"venv": "/opt/my venv"}, "source '/opt/my venv/bin/activate' || exit 2"),
        ({"modules": ("cuda/12.8",)}, "module load cuda/12.8 || exit 2"),
        ({"container": "img.sif", "runtime": "apptainer"}, "export PYTHONNOUSERSITE=1"),
        ({"container": "img.sif", "runtime": "apptainer"}, "cache=/tmp/megatron-lst-"),
        ({}, 'cache="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"/megatron-lst-'),
        ({"interface": "ib0"}, "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0"),
    ],
)
def test_environments(options, expected):
    script = train_script("c.yaml", [], "runs/a", SlurmOptions(**options))
    check_syntax(script)
    assert expected in script


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_a_container_sees_a_run_folder_outside_the_working_folder(tmp_path, runtime):
    """In the container's own file system the checkpoints would be lost with the job, silently."""
    options = SlurmOptions(container="img", runtime=runtime, work_dir=str(tmp_path))
    inside, outside = str(tmp_path / "runs" / "a"), "/scratch/runs/a"
    mounted = {
        folder: f"{folder}:{folder}" in train_script("c.yaml", [], folder, options) for folder in (inside, outside)
    }
    assert mounted == {inside: False, outside: True}  # what is in the working folder is seen through it
    assert f"{tmp_path}:{tmp_path}" in train_script("c.yaml", [], "runs/a", options)


@pytest.mark.parametrize("folder", ["mix-30%speech", "a%j", "%%", "100%"])
def test_percent_signs_of_a_path_are_the_paths(folder):
    script = train_script("c.yaml", [], f"runs/{folder}", SlurmOptions(work_dir="/w"))
    escaped = folder.replace("%", "%%")
    assert f'#SBATCH --output="/w/runs/{escaped}/logs/slurm-%j.txt"' in script
    assert value_of(script, "run_dir", "/") == [f"runs/{folder}"]
    script = prep_script(["prep", "units", "p.yaml"], 2, 0, folder, SlurmOptions(work_dir="/w"))
    assert f'#SBATCH --output="/w/{escaped}/slurm-%A_%a.txt"' in script
    with pytest.raises(UserError, match="another run.dir"):
        train_script("c.yaml", [], "runs/a\\b", SlurmOptions())


def test_what_is_filled_in_is_filled_in_once(tmp_path, monkeypatch):
    """On the nodes `$SCRATCH` may be another folder: the job's log and its run would part."""
    config = write_run(tmp_path)
    monkeypatch.setenv("SCRATCH", f"{tmp_path}/scratch")
    arguments = ["slurm", str(config), "--gpus", "0", "--dry-run"]

    def printed(*overrides):
        return CliRunner().invoke(launch_app, [*arguments, *overrides], catch_exceptions=False).stdout

    script = printed("run.dir=$SCRATCH/x")
    assert value_of(script, "run_dir", "/") == [f"{tmp_path}/scratch/x"]
    assert value_of(script, "command", "/")[-1] == f"run.dir={tmp_path}/scratch/x"
    assert value_of(printed(), "command", "/") == ["train", str(config)]
    with pytest.raises(UserError, match="not set"):
        printed("run.dir=$NO_SUCH_FOLDER/x")


def test_what_counts_as_a_checkpoint_is_the_runs_own(tmp_path):
    script = train_script("c.yaml", [], str(tmp_path), SlurmOptions())
    newest = next(line for line in script.splitlines() if line.startswith("newest()"))
    for name in (
        "step-00000008",
        "step-00000012",
        "step-00000099-2",
        "step-00000098.tmp",
        "step-00000097_1",
        "step-96",
    ):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    command = f"run_dir={tmp_path}\n{newest}\nnewest"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("step-00000012")
    (tmp_path / "checkpoints" / "step-100000000").mkdir()
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("step-100000000")


STUBS = {
    "scontrol": 'case "$1" in hostnames | show) echo NodeAddr=10.0.0.1 ;; *) echo "$@" >> "$FAKE/asked" ;; esac',
    "squeue": "printf '%s\\n' 7.batch 7.extern 7.3",
    "scancel": 'echo "scancel $*" >> "$FAKE/asked"; touch "$FAKE/told"',
    "srun": 'touch "$FAKE/started"; while [ ! -e "$FAKE/told" ]; do sleep 0.05; done; exit 1',
}
"""A scheduler's commands: `srun` runs until somebody is told to leave, and leaves without saving."""


def start_job(folder, script, seconds, stubs=STUBS):
    """Run a job script as a batch node would, send it USR1, and give its exit code and what it asked of SLURM.

    Args:
        seconds: how long the job has been running already.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in stubs.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    for name in ("asked", "started", "told"):
        (folder / name).unlink(missing_ok=True)
    (folder / "job.sh").write_text(script)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAKE": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "n1",
        "SECONDS": str(seconds),
    }
    job = subprocess.Popen(["bash", str(folder / "job.sh")], env=environment, stdout=subprocess.DEVNULL)
    wait_until((folder / "started").exists)
    job.send_signal(signal.SIGUSR1)
    return job.wait(30), (folder / "asked").read_text().splitlines()


def test_the_signal_goes_to_the_steps_that_slurm_names(tmp_path):
    """Not to a number that is counted here: a step that could not be made would leave the count wrong."""
    script = train_script("c.yaml", [], str(tmp_path / "run"), SlurmOptions(work_dir=str(tmp_path)))
    code, asked = start_job(tmp_path, script, seconds=0)
    assert code == 0
    assert asked == ["scancel --signal=USR1 7.3", "requeue 7"]


def test_the_steps_get_the_scripts_environment_and_meet_without_scontrol(tmp_path):
    """A stand-in for srun that passes on what it is told to: under sbatch --export=NONE the rest would be lost."""
    passes = 'echo "$*" > "$FAKE/called"; case " $* " in *" --export=ALL "*) printenv > "$FAKE/environment" ;; esac; '
    stubs = STUBS | {
        "srun": passes + STUBS["srun"],
        "scontrol": 'case "$1" in requeue) echo "$@" >> "$FAKE/asked" ;; *) exit 1 ;; esac',
    }
    options = SlurmOptions(work_dir=str(tmp_path), env=("NAME=a b",), interface="ib0")
    code, _ = start_job(tmp_path, train_script("c.yaml", [], str(tmp_path / "run"), options), 0, stubs)
    assert code == 0
    environment = dict(
        line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line
    )
    assert environment["NAME"] == "a b"
    assert environment["GLOO_SOCKET_IFNAME"] == "ib0"
    assert environment["MASTER_ADDR"]
    assert int(environment["MASTER_PORT"]) >= 20000
    assert "srun --export=ALL" in prep_script(["prep", "units", "c.yaml"], 2, 0, "logs", SlurmOptions())


def test_a_job_that_never_saves_is_not_requeued_for_ever(tmp_path):
    script = train_script("c.yaml", [], str(tmp_path / "run"), SlurmOptions(work_dir=str(tmp_path), retries=2))

    def requeued(seconds):
        code, asked = start_job(tmp_path, script, seconds)
        assert code == (0 if "requeue 7" in asked else 4)
        return "requeue 7" in asked

    assert [requeued(60) for _ in range(3)] == [True] * 3  # preempted early: the cluster's business, not the run's
    assert [requeued(2000) for _ in range(2)] == [True, False]


def test_a_checkpoint_clears_the_count(tmp_path):
    script = train_script("c.yaml", [], str(tmp_path / "run"), SlurmOptions(work_dir=str(tmp_path), retries=1))
    saves = STUBS | {"srun": f"mkdir -p {tmp_path}/run/checkpoints/step-00000004; {STUBS['srun']}"}
    code, asked = start_job(tmp_path, script, 2000, saves)
    assert (code, asked[-1]) == (0, "requeue 7")


def test_a_preparation_array():
    script = prep_script(["prep", "units", "my prep.yaml"], 16, 4, "logs", SlurmOptions(gpus=0, time="4:00:00"))
    check_syntax(script)
    assert "#SBATCH --array=0-15%4" in script
    assert value_of(script, "command", "/") == ["prep", "units", "my prep.yaml"]
    assert '--items "$SLURM_ARRAY_TASK_ID/$tasks"' in script
    with pytest.raises(UserError):
        prep_script(["prep"], 0, 0, "logs", SlurmOptions())


@pytest.mark.parametrize(
    "command",
    [
        ["unist", "prep.yaml"],
        ["codebook", "prep.yaml"],
        ["units", "missing.yaml"],
        ["units", "prep.yaml", "jobs.wokers=2"],
    ],
)
def test_an_array_whose_tasks_would_all_fail_is_refused_before_it_queues(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prep.yaml").write_text("out: out\nmanifests: [m.jsonl]\n")
    with pytest.raises(UserError):
        CliRunner().invoke(launch_app, ["slurm-prep", "--dry-run", "--", *command], catch_exceptions=False)
    right = ["slurm-prep", "--dry-run", "--", "units", "prep.yaml", "jobs.workers=2"]
    assert "prep units prep.yaml jobs.workers=2" in CliRunner().invoke(launch_app, right, catch_exceptions=False).stdout


def test_an_empty_mark_leaves_no_line(tmp_path):
    lines = fill(
        "slurm/train.sbatch",
        dict.fromkeys(
            "DIRECTIVES COMMAND RUN_DIR PROCESSES RETRIES WORK_DIR SETUP SCRATCH THREADS SRUN PYTHON".split(), ""
        ),
    ).splitlines()
    template = (template_folder() / "slurm" / "train.sbatch").read_text().splitlines()
    assert len(lines) == len(template) - 2


def test_dry_run_prints_and_submits_nothing(tmp_path, monkeypatch):
    config = write_run(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    arguments = ["slurm", str(config), "--nodes", "2", "--gpus", "0", "--processes", "1", "--dry-run"]
    done = CliRunner().invoke(launch_app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"command=(train {config})" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_layout_that_cannot_work_is_refused_before_it_queues(tmp_path):
    config = write_run(tmp_path)
    with pytest.raises(UserError):
        CliRunner().invoke(
            launch_app, ["slurm", str(config), "--nodes", "3", "--gpus", "1", "--dry-run"], catch_exceptions=False
        )


def test_without_sbatch_the_script_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        submit("#!/bin/bash\n", tmp_path / "logs" / "x.sbatch")
    assert (tmp_path / "logs" / "x.sbatch").exists()
