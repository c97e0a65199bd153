"""Ctrl-C: a sentence, the shell's exit code, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.multiprocess
def test_an_interrupted_preparation_says_how_it_goes_on(tmp_path: Path) -> None:
    """It is interrupted while it waits for a text: a pipe that nobody writes to."""
    text = tmp_path / "t.jsonl"
    os.mkfifo(text)
    (tmp_path / "prep.yaml").write_text(f"out: out\ntext: [{{name: t, path: {text}}}]\njobs: {{workers: 1}}\n")
    command = [sys.executable, "-m", "megatron_lst", "prep", "run", "prep.yaml", "--quiet"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "plan.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)
        assert process.poll() is None, process.stderr and process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted; what is finished stays, and the same command goes on from there\n"
    text.unlink()
    text.write_text('{"text": "Here it is."}\n')
    assert subprocess.run(command, cwd=tmp_path, env=environment, timeout=120, check=False).returncode == 0
    assert (tmp_path / "out" / "text" / "manifest.json").exists()
