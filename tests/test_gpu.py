"""A GPU that is there and cannot be used is told with the build of torch that fits; it never becomes a CPU unseen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lst.gpu import driver_version, unusable

NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Fri Mar 14 18:03:11 UTC 2025\nGCC version:  12.2.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (dvs-builder)\n"


def machine(folder: Path, driver: str | None, cards: int = 1) -> dict[str, Path]:
    (folder / "dev").mkdir()
    for index in range(cards):
        (folder / "dev" / f"nvidia{index}").touch()
    (folder / "dev" / "nvidiactl").touch()
    if driver:
        (folder / "version").write_text(NVRM.format(driver))
    return {"devices": folder / "dev", "driver": folder / "version"}


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        ("535.104.05", "13.0", "driver 535.104.05, and torch 2.13.0 (for CUDA 13.0) cannot use CUDA. This driver runs "
         "builds for CUDA 12.6 or 12.8: install torch from download.pytorch.org/whl (cu126, cu128)"),
        ("580.65.06", None, "(a build for CPUs) cannot use CUDA. This driver runs builds for CUDA 13.0"),
        ("460.27", "12.8", "builds for CUDA 11.8"),
        ("390.48", "12.8", "too old for every build"),
        ("580.65.06", "12.8", "The two fit: nvidia-smi says"),
        (None, "13.0", "Load NVIDIA's driver"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_both_versions(
    tmp_path: Path, driver: str | None, cuda: str | None, said: str
) -> None:
    why = unusable("2.13.0", cuda, **machine(tmp_path, driver), environment={})
    assert why is not None
    assert said in why
    assert "1 NVIDIA device, " in why
    assert 'CUDA_VISIBLE_DEVICES=""' in why


def test_a_machine_without_a_gpu_and_a_hidden_one_are_cpus(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    nothing = {"devices": tmp_path / "none", "driver": tmp_path / "no-driver"}
    assert unusable("2.13.0", "13.0", **nothing, environment={}) is None
    there = machine(tmp_path, "535.104.05")
    assert unusable("2.13.0", "13.0", **there, environment={"CUDA_VISIBLE_DEVICES": ""}) is None
    assert unusable("2.13.0", "13.0", **there, environment={"CUDA_VISIBLE_DEVICES": "0"}) is not None


def test_a_driver_without_device_files_counts_as_a_gpu(tmp_path: Path) -> None:
    """A container that sees the driver and was given no device."""
    why = unusable("2.13.0", "13.0", **machine(tmp_path, "580.65.06", cards=0), environment={})
    assert why is not None
    assert "an NVIDIA driver" in why


def test_both_kernel_modules_say_their_version(tmp_path: Path) -> None:
    (tmp_path / "version").write_text(OPEN)
    assert driver_version(tmp_path / "version") == "570.124.06"
    assert driver_version(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "megatron_lst", "train", "configs/demo.yaml", "training.steps=1"],
        ["-m", "benchmarks.parts", "kernel-tests"],
    ],
    ids=["train", "benchmarks"],
)
def test_training_and_benchmarks_refuse_to_begin_on_the_cpu(tmp_path: Path, command: list[str]) -> None:
    """The real programs, on a machine whose driver torch cannot use."""
    root = Path(__file__).resolve().parents[1]
    paths = machine(tmp_path, "535.104.05")
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, megatron_lst.gpu as gpu\n"
        f"gpu.unusable.__kwdefaults__.update(devices=pathlib.Path({str(paths['devices'])!r}), "
        f"driver=pathlib.Path({str(paths['driver'])!r}))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(root), str(root / "kernels"), str(root / "data_prep")])
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | {"PYTHONPATH": path}
    run = [*command, f"run.dir={tmp_path}/run"] if "train" in command else [*command, "--out", str(tmp_path / "out")]
    answer = subprocess.run([sys.executable, *run], cwd=root, env=environment, capture_output=True, text=True)
    assert answer.returncode == 2, answer.stderr
    assert "driver 535.104.05" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
