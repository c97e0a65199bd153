"""The programs of docs/api.md run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lst.config import load_config
from tests.training.tiny import write_run

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "data_prep")])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_look_at_data(tmp_path: Path) -> None:
    said = run(sys.executable, "examples/look_at_data.py", write_run(tmp_path))
    for word in ("documents", "static: ", "aligned: ", "GFLOPs", "M parameters"):
        assert word in said


@pytest.mark.multiprocess
def test_a_loop_of_ones_own_gives_the_same_losses_alone_and_on_two_ranks(tmp_path: Path) -> None:
    config, program = write_run(tmp_path), "examples/train_in_30_lines.py"
    alone = run(sys.executable, program, config, "training.steps=2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = run(*torchrun, program, config, "training.steps=2")
    assert alone.startswith("step 1: loss ")
    assert alone == together


def test_prompt_an_export(tmp_path: Path) -> None:
    from megatron_lst.inference import write_export
    from tests.support.single import engine_of

    config = load_config(write_run(tmp_path), ["vocabulary.text_size=32000"])
    with engine_of(config) as engine:
        weights = engine.export_weights()
    write_export(tmp_path / "export", weights, config, {"tokenizer": {"name": "mistral-v1"}})
    said = run(sys.executable, "examples/prompt_an_export.py", tmp_path / "export", "In the beginning")
    assert said.startswith("In the beginning ...")
    assert "tokens, one pass" in said
