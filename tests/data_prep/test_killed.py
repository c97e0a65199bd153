"""Killed at random moments, workers and all, the preparation ends with the very bytes of an uninterrupted one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lst_prep.config import CuttingConfig, JobConfig, PrepConfig
from megatron_lst.config.load import dump_yaml
from megatron_lst.documents.shards import verify

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from lst_prep.config import PrepConfig
from lst_prep.pipeline import run
from megatron_lst.config.load import build, read_yaml
if __name__ == "__main__":
    run(build(PrepConfig, read_yaml(Path(sys.argv[1])), ""))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The preparation in a process group of its own, so that a kill takes the workers too."""
    script = folder / "main.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "data_prep"))
    return subprocess.Popen(
        [sys.executable, str(script), str(folder / "config.yaml")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=(folder / "log").open("ab"),
        start_new_session=True,
    )


def prepare(folder: Path, base: PrepConfig, kills: int, rng: random.Random) -> None:
    """Run to the end, killed exactly `kills` times on the way."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(replace(base, out=str(folder / "out"))))
    hit, longest = 0, 6.0
    while hit < kills:
        process = start(folder)
        try:
            process.wait(timeout=rng.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            if rng.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # the parent alone: its workers must notice and go
            hit += 1
        else:  # it was done before the last kill: again from the beginning, with less time between kills
            assert process.returncode == 0, (folder / "log").read_text()
            shutil.rmtree(folder / "out")
            hit, longest = 0, 0.7 * longest
        process.wait(timeout=900)
        time.sleep(0.1)
    process = start(folder)
    assert process.wait(timeout=900) == 0, (folder / "log").read_text()


def contents(out: Path) -> dict[str, bytes]:
    names = ["codebook.safetensors", "heldout.json", "tokenizer.json", "summary.json"]
    for name in ("speech", "text", "heldout-speech", "heldout-text"):
        names += [str(path.relative_to(out)) for path in (out / name).rglob("*") if path.is_file()]
    return {name: (out / name).read_bytes() for name in names if Path(name).name != "manifest.json"}


@pytest.mark.multiprocess
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_preparation_ends_as_an_uninterrupted_one(tmp_path: Path, kills: int) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("pipeline_test", Path(__file__).with_name("test_pipeline.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    base = replace(
        module.small_config(tmp_path / "inputs"),
        jobs=JobConfig(workers=2, item_pieces=1),
        cutting=CuttingConfig("energy", over_seconds=20.0, shortest_seconds=5.0, longest_seconds=15.0),
    )
    rng = random.Random(kills)
    prepare(tmp_path / "calm", base, 0, rng)
    prepare(tmp_path / "killed", base, kills, rng)
    calm, killed = contents(tmp_path / "calm" / "out"), contents(tmp_path / "killed" / "out")
    assert sorted(calm) == sorted(killed)
    differing = [name for name, value in calm.items() if killed[name] != value and name != "summary.json"]
    assert differing == []
    for name in ("speech", "text", "heldout-speech", "heldout-text"):
        assert verify(tmp_path / "killed" / "out" / name) == []
    assert not list((tmp_path / "killed" / "out").rglob("*.tmp"))
