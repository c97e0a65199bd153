"""How many cores a process may use: affinity and control groups, not the whole machine."""

import os
from pathlib import Path

import pytest

from megatron_lst import machine


def test_affinity_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 7, 8, 9, 11})
    assert machine.usable_cores(tmp_path, tmp_path / "no groups") == 5


@pytest.mark.parametrize(("quota", "cores"), [(2.0, 2), (1.5, 2), (0.25, 1), (64.0, 5)])
def test_a_control_groups_quota_decides(
    quota: float, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)))
    (tmp_path / "own").write_text("0::/job\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cpu.max").write_text(f"{quota * 100_000:.0f} 100000\n")
    assert machine.usable_cores(tmp_path, tmp_path / "own") == cores


def test_the_smallest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/slurm/job/step\n")
    step = tmp_path / "slurm" / "job" / "step"
    step.mkdir(parents=True)
    (step / "cpu.max").write_text("max 100000\n")
    assert machine._cgroup_cores(tmp_path, tmp_path / "own") is None
    (step.parent / "cpu.max").write_text("300000 100000\n")
    (step.parents[1] / "cpu.max").write_text("1600000 100000\n")
    assert machine._cgroup_cores(tmp_path, tmp_path / "own") == 3.0
    (tmp_path.parent / "cpu.max").write_text("1 100000\n")  # not a group
    assert machine._cgroup_cores(tmp_path, tmp_path / "own") == 3.0


def test_version_one_and_a_path_that_is_not_visible(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/x\n3:cpu,cpuacct:/docker/abc\n")
    (tmp_path / "cpu").mkdir()
    assert machine._cgroup_cores(tmp_path, tmp_path / "own") is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine._cgroup_cores(tmp_path, tmp_path / "own") is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert machine._cgroup_cores(tmp_path, tmp_path / "own") == 2.5
    assert machine._cgroup_cores(tmp_path, tmp_path / "absent") is None
