"""`lst doctor` tells what is here, and what is missing or broken, with what to do about it."""

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from megatron_lst.cli import doctor as module
from megatron_lst.cli.app import app
from megatron_lst.planning.devices import find_device, peak_flops


def fake_distribution(folder: Path, name: str, version: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_it_finds_what_this_machine_has() -> None:
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.output)
    found = {line["name"]: line["found"] for line in report["packages"]}
    assert found["torch"]
    assert found["megatron-core"]
    assert report["missing"] == []
    assert {row["op"] for row in report["kernels"]} >= {"patch_pool", "interval_attention"}
    assert set(report["chosen"]) == {"optimizer", "norm"}
    assert report["attention"] == {
        "else": {"takes": "lst_kernels", "because": "proved; not measured here for such heads"}
    }


def test_tables_name_everything() -> None:
    answer = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    words = ("python", "memory", "disk here", "torch", "apex", "varlen_attn", "interval_attention")
    for word in (*words, "This machine can train"):
        assert word in answer.output
    assert "engine.attention=auto takes lst_kernels: proved; not measured here for such heads" in answer.output


def test_attention_is_what_the_measured_table_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_lst.errors import UserError
    from megatron_lst.parallel import accelerators

    monkeypatch.setenv("COLUMNS", "200")
    rows = {"bfloat16 128": ("varlen_attn", "quickest measured here"), "else": ("lst_kernels", "proved")}
    monkeypatch.setattr(accelerators, "attention_here", lambda: rows)
    module.tell(module.examine(), as_json=False)
    said = capsys.readouterr().out
    assert "engine.attention=auto takes varlen_attn for bfloat16 128: quickest measured here" in said
    assert "engine.attention=auto takes lst_kernels for all others: proved" in said

    def unreadable() -> None:
        raise UserError("LST_KERNELS_TILES=tiles.json: No such file")

    monkeypatch.setattr(accelerators, "attention_here", unreadable)
    report = module.examine()
    assert report["attention"] == {}
    assert "LST_KERNELS_TILES=tiles.json: No such file" in report["warnings"]


def test_a_missing_requirement_is_told_and_exits_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    entry = ("nothing_of_that_name", "nothing-of-that-name", "all", "pip install it", True)
    with pytest.raises(typer.Exit) as left:
        module.tell(module.examine([*module.PACKAGES, entry]), as_json=False)
    assert left.value.exit_code == 2
    said = capsys.readouterr().out
    assert "Cannot train here" in said
    assert "pip install it" in said


def test_a_controller_that_does_not_answer_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho one >&2; echo 'cannot reach node-a' >&2; exit 1\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert module._slurm().advice == "no controller answers (cannot reach node-a)"


def test_an_installed_package_that_does_not_import_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_distribution(tmp_path, "torchaudio", "2.11.0", "raise OSError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = module._package("torchaudio", "torchaudio", "alignment", "", False)
    assert finding.found is None
    assert "2.11.0 is installed but does not import" in finding.advice
    assert "libcudart" in finding.advice


def test_traps_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    fake_distribution(tmp_path, "torchvision", "0.28.0", "")
    fake_distribution(tmp_path, "apex", "0.9", "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.syspath_prepend(tmp_path)
    warnings = " ".join(module._warnings())
    assert "torchvision beside a CPU build" in warnings
    assert "apex is not NVIDIA's" in warnings
    assert "interpreted" in warnings


def test_warnings_are_silent_on_a_sound_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert module._warnings(installed=lambda name: False) == []


@pytest.mark.parametrize(
    ("cuda_name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("a100", "a100"),
    ],
)
def test_devices_are_known_by_their_cuda_names(cuda_name: str, short: str) -> None:
    device = find_device(cuda_name)
    assert device is not None
    assert device.name == short


def test_an_unknown_device_has_no_peak() -> None:
    assert peak_flops("Tesla V100-SXM2-16GB") is None
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
