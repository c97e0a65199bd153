"""The wheel that a release publishes, unpacked and used from elsewhere; `test_installation` installs it for real."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 2e6  # neither the corpus (18 MB) nor the encoder (16 MB)
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def lst(site: Path, cwd: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", "megatron_lst", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_in_it(unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".safetensors", ".ogg", ".wav", ".zst"))]
    wanted = {
        "megatron_lst/config/shipped_configs/lst-1b.yaml", "megatron_lst/config/shipped_configs/sizes/1b.yaml",
        "megatron_lst/launching/launchers/slurm/train.sbatch", "megatron_lst/py.typed", "lst_prep/config.py",
        "megatron_lst/pages/templates/page.html", "lst_kernels/__init__.py",
    }  # fmt: skip
    assert wanted <= names, wanted - names
    requires = next(unpacked.glob("*.dist-info")) / "METADATA"
    assert "Project-URL: Paper, https://arxiv.org/abs/2510.06195" in requires.read_text()


def test_configurations_are_found_by_name_from_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    assert json.loads(lst(unpacked, tmp_path, "flops", "lst-1b", "--json"))
    shown = json.loads(lst(unpacked, tmp_path, "config", "show", "demo", "--json"))
    assert str(unpacked) in shown["model.hidden"]["from"]  # this wheel's own, not the checkout's
    assert shown["run.dir"]["value"].endswith("runs/demo")
    script = lst(unpacked, tmp_path, "launch", "slurm", "lst-1b", "--dry-run")
    assert "lst-1b" in script
    assert not list(tmp_path.iterdir())
