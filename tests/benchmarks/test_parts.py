"""Parts run apart: whatever becomes of one, the others run, and what each said is kept."""

import json
from pathlib import Path

import pytest

from benchmarks import parts
from benchmarks.parts import PARTS, Command, main

HANGS = "import subprocess, sys; print('before', flush=True); subprocess.run(['sleep', '60'])"


def code(source: str) -> Command:
    return Command(("-c", source), "something")


FEW = {
    "fails": code("import sys; sys.exit('badly')"),
    "dies": code("import os; os.kill(os.getpid(), 11)"),
    "hangs": code(HANGS),
    "refuses": code("import sys; sys.exit(2)"),
    "works": code("import megatron_lst, lst_prep, benchmarks; print('well')"),
    "writes": Command(("-c", "import sys; print(sys.argv[1:])"), "where", writes=True),
}


def test_every_part_runs_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)], FEW, limit=4.0) == 1
    found = json.loads((tmp_path / "summary.json").read_text())
    ended = {name: end["exit_code"] for name, end in found.items()}
    assert ended == {"fails": 1, "dies": -11, "hangs": None, "refuses": 2, "works": 0, "writes": 0}
    assert 4 <= found["hangs"]["seconds"] < 20
    assert "badly" in (tmp_path / "fails.log").read_text()
    assert "before" in (tmp_path / "hangs.log").read_text()
    assert str(tmp_path) in (tmp_path / "writes.log").read_text()
    said = capsys.readouterr().out
    assert "well" in said
    assert "out of time" in said


def test_what_has_nothing_to_do_is_no_failure(tmp_path: Path) -> None:
    assert main(["refuses", "works", "--out", str(tmp_path)], FEW) == 0


def test_skipped_gpu_tests_are_not_called_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tests = {"tests": Command(("-c", "print('ran')"), "that it is right", gpu=True)}
    for here, said in ((False, "nothing done"), (True, "ok")):
        assert main(["--out", str(tmp_path)], tests, has_gpu=lambda here=here: here) == 0  # type: ignore[misc]
        output = capsys.readouterr().out
        assert said in output.splitlines()[-1]
        assert ("ran" in output) == here


def test_no_part_begins_after_the_time_that_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hangs", "works", "--minutes", "0.025", "--out", str(tmp_path)], FEW) == 1
    assert json.loads((tmp_path / "summary.json").read_text())["works"]["exit_code"] is None
    assert "not started" in capsys.readouterr().out
    assert not (tmp_path / "works.log").exists()


def test_a_part_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernel"]) == 2
    assert "kernels" in capsys.readouterr().err


def test_the_files_of_the_parts_are_there() -> None:
    """A name that moved would be found out on a GPU alone."""
    root = Path(parts.__file__).parents[1]
    named = [word for part in PARTS.values() for word in part.arguments if word.endswith((".py", ".yaml"))]
    assert len(named) > 5
    assert not [word for word in named if not (root / word).exists()]
