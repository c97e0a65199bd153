"""One page of everything that a run of the benchmarks found; packages for it from a folder of wheels."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.first_light import collect, markdown, write_page
from benchmarks.parts import Command, main
from benchmarks.wheels import unpacked
from megatron_lst.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STEP = {
    "benchmark": "step", "config": "configs/lst-1b.yaml", "overrides": ["model.text_path=direct"], "tiny": False,
    "units_per_second": 51234.5, "seconds": {"median": 0.3198}, "mfu": 0.41, "busy": 0.93, "peak_memory_gib": 66.2,
    "host_syncs_per_step": {"optimizer.py:80": 2}, "faults": ["compiled while it was timed: {'triton': 1}"],
    "modules": {"global": {"forward": 61.5, "backward": 120.25}, "head": {"forward": 80.0, "backward": 190.0}},
}  # fmt: skip
KERNELS = {
    "results": [
        {"op": "patch_pool", "case": "b4", "backend": "triton", "direction": "forward", "milliseconds": 0.0625,
         "rate": 1.0, "unit": "GB/s", "fraction": 0.83},
    ],
    "problems": ["rotary, b4, triton: differs by 0.5"],
    "left_out": ["interval_attention, b4, flex: not compiled"],
}  # fmt: skip
SPEED = {"tokens_per_second": 1234.0}
GENERATION = {"runs": [{"batch": 8, "prompt": 250, "decoding": "captured", "lst": SPEED, "baseline": SPEED}]}


def test_the_page_has_all_that_was_found_and_what_failed(tmp_path: Path) -> None:
    for name, result in (("step-lst-1b-x", STEP), ("kernels-x", KERNELS), ("generation-x", GENERATION)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    parts = {
        "step": {"shows": "the step", "exit_code": 1, "seconds": 61.0},
        "data": {"shows": "the stream", "exit_code": None, "seconds": 540.0},
    }
    (tmp_path / "summary.json").write_text(json.dumps(parts))
    (tmp_path / "step.log").write_text("first\n" * 50 + "CUDA out of memory\n")
    page = write_page(tmp_path).read_text()
    for said in (
        "51,234",
        "41.0",
        "| 93 |",
        "66.2",
        "compiled while",
        "| global | 61.50 | 120.25 |",
        "0.062",
        "differs by 0.5",
    ):
        assert said in page, said
    assert page.index("| head |") < page.index("| global |")  # what costs most stands first
    assert "CUDA out of memory" in page
    assert page.count("first\n") < 20
    assert "out of time" in page
    assert "1,234" in page
    assert json.loads((tmp_path / "first-light.json").read_text())["failed"].keys() == {"step", "data"}


def test_older_results_are_another_runs(tmp_path: Path) -> None:
    (tmp_path / "step-old.json").write_text(json.dumps(STEP))
    os.utime(tmp_path / "step-old.json", (1000, 1000))
    (tmp_path / "step-new.json").write_text(json.dumps(STEP))
    assert [step["file"] for step in collect(tmp_path, since=2000.0)["step"]] == ["step-new.json"]
    assert len(collect(tmp_path)["step"]) == 2


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    page = markdown(collect(tmp_path))
    for said in ("No step was measured", "No kernel was timed", "No generation was timed"):
        assert said in page


def test_the_parts_write_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"import json, sys; open(sys.argv[2] + '/step-a.json', 'w').write({json.dumps(STEP)!r})"
    assert main(["--out", str(tmp_path)], {"step": Command(("-c", code), "the step", writes=True)}) == 0
    assert "51,234" in (tmp_path / "first-light.md").read_text()
    assert "first-light.md" in capsys.readouterr().out


def wheel(folder: Path, name: str, code: str, member: str | None = None) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member or f"{name}/__init__.py", code)
    return path


def test_wheels_serve_what_this_python_lacks_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(tmp_path, "nobody_has_this", "word = 'unpacked'")
    wheel(tmp_path, "numpy", "raise SystemExit('another numpy')")
    wheel(tmp_path, "nvidia_something", "raise SystemExit('another CUDA')")
    uses = {"uses": Command(("-c", "import numpy, nobody_has_this; print(nobody_has_this.word)"), "an import")}
    assert main(["--out", str(tmp_path / "out"), "--wheels", str(tmp_path)], uses) == 0
    assert "unpacked" in capsys.readouterr().out
    assert main(["--out", str(tmp_path / "out")], uses) == 1  # without the wheels it does not import
    found = unpacked(tmp_path)
    assert found == unpacked(tmp_path)
    assert sorted(p.name for p in found.iterdir()) == ["nobody_has_this"]
    shutil.rmtree(found)


def test_wheels_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no wheels there; fill it"):
        unpacked(tmp_path)
    wheel(tmp_path, "climbs", "", "../climbs.py")
    with pytest.raises(UserError, match=r"climbs-1.0.*leads out of the wheel"):
        unpacked(tmp_path, tmp_path / "into")
    wheel(tmp_path, "climbs", "").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"climbs-1.0.*damaged"):
        unpacked(tmp_path, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_the_page_is_made_again_from_a_folder(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_light", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "no summary.json" in answer.stderr
