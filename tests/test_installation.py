"""The documented ways to install, for real: beside a torch that is there, from wheels, with the newest versions.

Each makes an environment of its own, in minutes; they need the package index that pip is configured for.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SMOKE = """
import torch
from megatron_lst.config import load_config
from megatron_lst.documents.writing import write_set
import deepspeed, megatron.core, lst_kernels, lst_prep, megatron_lst.model.model, megatron_lst.hf
print(torch.__version__)
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def run(*command: object, offline: bool = False, cwd: Path = ROOT, **environment: str) -> str:
    """Output of a command; `offline`: in a network namespace that has nothing, not even loopback."""
    words = [str(word) for word in command]
    if offline:
        words = ["unshare", "-n", *words]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "MAKE"))}
    done = subprocess.run(words, cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def checkout(folder: Path) -> Path:
    """The tracked files alone, as an archive has them."""
    folder.mkdir()
    packed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = [n for n in packed.decode().split("\0") if n and not n.startswith(("data_prep/corpus", "tests/"))]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def smoke(python: Path, offline: bool = False) -> str:
    return run(python, "-c", SMOKE, offline=offline, cwd=Path("/"), CUDA_VISIBLE_DEVICES="")


def torch_version() -> str:
    import torch

    return torch.__version__


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BUILT = """
import sys
import megatron_lst as lst
print(lst.__file__, len(lst.ShardSet(sys.argv[1])), lst.ShardSet(sys.argv[1])[0].id)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a release publishes."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_alone_serves_inference_and_looking_at_data(wheel: Path, tmp_path: Path) -> None:
    from megatron_lst.documents.writing import write_set
    from megatron_lst.inference import write_export
    from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TOKENIZER
    from tests.support.toy import initial_weights, toy_config
    from tests.training.tiny import write_run

    config = toy_config(patching__size=4)
    write_export(tmp_path / "export", initial_weights(config), config)
    write_set(tmp_path / "set", SPEECH_DOCUMENTS, "speech", TOKENIZER, CODEBOOK)
    training = write_run(tmp_path / "run")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    torch = f"torch=={torch_version().partition('+')[0]}"
    run(python, "-m", "pip", "install", "-q", torch, wheel, "-c", ROOT / "requirements" / "constraints.txt")
    lst = tmp_path / "venv" / "bin" / "lst"
    assert run(lst, "--version", cwd=tmp_path).startswith("megatron-lst ")
    said = run(python, "-c", BUILT, tmp_path / "set", cwd=tmp_path)
    assert said.startswith(str(tmp_path / "venv"))
    assert said.split()[1] == str(len(SPEECH_DOCUMENTS))
    answer = json.loads(
        run(lst, "generate", "export", "--units", "1 2 3", "--max-tokens", 4, "--to", "speech", "--json", cwd=tmp_path)
    )
    assert answer["responses"][0]["tokens"] > 0
    assert json.loads(run(lst, "flops", "lst-1b", "--json", cwd=tmp_path))  # found in the wheel
    run(lst, "data", "fingerprint", training, "--steps", 1, cwd=tmp_path)
    for command, extra in (
        (("train", training), "train"),
        (("prep", "run", "prep-demo"), "prep"),
        (("data", "inspect", training), "train"),
    ):
        done = subprocess.run([str(w) for w in (lst, *command)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert f"pip install 'megatron-lst[{extra}]'" in done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_resolves_with_the_pins(extra: str, wheel: Path) -> None:
    """What pip would take for it is what `constraints.txt` has; a pin that contradicts a bound would be refused."""
    report = run(
        sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-",
        f"torch=={torch_version().partition('+')[0]}", f"{wheel}[{extra}]",
        "-c", ROOT / "requirements" / "constraints.txt",
    )  # fmt: skip
    taken = {item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(report)["install"]}
    wanted = {Requirement(line) for line in EXTRAS[extra]}
    named = {w.name.lower().replace("_", "-") for w in wanted if w.marker is None or w.marker.evaluate()}
    assert named <= taken


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with a torch and a numpy of its own, as an image or a cluster's module has one."""
    folder = tmp_path_factory.mktemp("machine") / "python"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "-q", "torch==2.13.0", "numpy==2.2.6")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels") / "wheels"
    run(sys.executable, ROOT / "requirements" / "setup_venv.py", "--fill", folder, "--keep")
    names = {path.name.partition("-")[0].lower() for path in folder.iterdir()}
    assert {"megatron_core", "deepspeed", "mosaicml_streaming", "xxhash"} <= names
    assert "torch" not in names
    return folder


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a network namespace needs root and unshare"
)
def test_from_wheels_and_without_a_network_beside_a_torch_that_stays(
    machine: Path, wheels: Path, tmp_path: Path
) -> None:
    here = checkout(tmp_path / "unpacked")
    base = [machine, "-I", here / "requirements" / "setup_venv.py", tmp_path / "venv", "--keep"]
    with pytest.raises(AssertionError):  # the control: there is no network
        run(*base, offline=True, cwd=here)
    shutil.rmtree(tmp_path / "venv")
    run(*base, "--wheels", wheels, offline=True, cwd=here)
    said = smoke(tmp_path / "venv" / "bin" / "python", offline=True)
    assert said.split()[0] == "2.13.0+cpu" or said.startswith("2.13.0")
    found = run(tmp_path / "venv/bin/python", "-c", "import numpy, torch; print(numpy.__version__, torch.__file__)")
    assert found.startswith("2.2.6 ")  # constraints.txt has another one
    assert str(machine.parents[1]) in found  # nothing was put over the machine's own
    # And the benchmarks with nothing installed at all.
    said = run(
        machine,
        "-m",
        "benchmarks.parts",
        "doctor",
        "--wheels",
        wheels,
        "--out",
        tmp_path / "out",
        offline=True,
        cwd=here,
    )
    assert "This machine can train" in said
    assert (tmp_path / "out" / "first-light.md").is_file()


def test_the_newest_versions_that_the_bounds_allow(tmp_path: Path) -> None:
    """Without the constraints: what a user's pip takes."""
    venv = tmp_path / "newest"
    run(sys.executable, "-m", "venv", venv)
    python, requirements = venv / "bin" / "python", ROOT / "requirements"
    torch = f"torch=={torch_version().partition('+')[0]}"
    sets = [part for name in ("train.txt", "prep.txt") for part in ("-r", requirements / name)]
    run(python, "-m", "pip", "install", "-q", torch, *sets)
    run(python, "-m", "pip", "install", "-q", "--no-deps", torch, "-r", requirements / "no-deps.txt")
    run(python, "-m", "pip", "install", "-q", "--no-deps", torch, "hatchling", "editables", ROOT)
    smoke(python)
    # What trains here trains there, to the same losses.
    from tests.training.tiny import curve, write_run

    config = write_run(tmp_path / "run", training={"steps": 3})
    run(python, "-m", "megatron_lst", "train", config, cwd=Path("/"), CUDA_VISIBLE_DEVICES="")
    run(sys.executable, "-m", "megatron_lst", "train", config, f"run.dir={tmp_path}/pinned", CUDA_VISIBLE_DEVICES="")
    newest, pinned = curve(tmp_path / "run" / "run"), curve(tmp_path / "pinned")
    assert [step[2] for step in newest.values()] == [step[2] for step in pinned.values()]
    assert [step[0] for step in newest.values()] == pytest.approx([step[0] for step in pinned.values()], abs=2e-6)
