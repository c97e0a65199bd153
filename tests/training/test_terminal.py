"""What becomes of a run whose terminal is closed, whose output nobody reads, or that was told to ignore a signal."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.training.checkpoint import complete_checkpoints
from megatron_lst.training.metrics import read_metrics
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.events import read_events
from tests.training.tiny import write_run

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]
RANK = [sys.executable, "-m", "tests.training.slowly"]
AGENT = [sys.executable, "-m", "megatron_lst.launching.agent", "--module", "tests.training.slowly", "--"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    write_run(folder, training={"steps": 400}, checkpoint={"every": 4, "keep": 2}, data={"workers": 1})
    return folder


def start(folder: Path, name: str, command: list[str], *overrides: str, pause: float = 0.1, **options: Any) -> Any:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "data_prep"))
    environment = os.environ | {"PYTHONPATH": path, "LST_TEST_SECONDS": str(pause), "OMP_NUM_THREADS": "1"}
    arguments = ["train", str(folder / "config.yaml"), f"run.dir={folder / name}", *overrides]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    given = silent | {"cwd": ROOT, "env": environment, "preexec_fn": heed_sighup} | options
    return subprocess.Popen([*command, *arguments], **given)


def heed_sighup() -> None:
    """Whoever runs the suite may ignore the signal (nohup), which a child would inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def steps(run: Path) -> int:
    return len(read_metrics(run))


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def saved_at_once(process: subprocess.Popen, run: Path, number: signal.Signals) -> None:
    assert process.wait(60) == 0
    stopped = outcome.read(run)
    assert stopped is not None
    assert (stopped["state"], stopped["next"], stopped["signal"]) == ("saved", "stop", number.name)
    assert complete_checkpoints(run)[-1].step == stopped["step"] < 400


@pytest.mark.parametrize(
    "command", [pytest.param(RANK, marks=pytest.mark.slow, id="lst train"), pytest.param(AGENT, id="agent")]
)
def test_sighup_saves_and_under_nohup_it_is_ignored(folder: Path, command: list[str]) -> None:
    run = folder / f"hup-{len(command)}"
    process = start(folder, run.name, command, start_new_session=True)
    wait_for(lambda: steps(run) >= 3)
    process.send_signal(signal.SIGHUP)
    saved_at_once(process, run, signal.SIGHUP)

    process = start(folder, run.name, ["nohup", *command], start_new_session=True)
    before = steps(run)
    wait_for(lambda: steps(run) >= before + 2)
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal does: to every process that it has started
    here = steps(run)
    wait_for(lambda: steps(run) >= here + 5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    saved_at_once(process, run, signal.SIGTERM)


def test_other_signals_that_were_ignored_stay_so_but_the_schedulers(folder: Path) -> None:
    """A script's background ignores SIGINT. SIGUSR1 asks for a restart: job scripts ignore it for themselves."""
    run = folder / "ignored"
    quiet = ["bash", "-c", 'trap \'\' INT USR1 TERM; exec "$0" "$@"', *RANK]
    process = start(folder, run.name, quiet)
    wait_for(lambda: steps(run) >= 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    here = steps(run)
    wait_for(lambda: steps(run) >= here + 5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    assert (outcome.read(run) or {})["next"] == "requeue"


def test_a_terminal_that_is_closed(folder: Path) -> None:
    """A real one: the kernel sends SIGHUP to all its processes, data workers too, and writing to it fails from then."""
    run = folder / "closed"
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        heed_sighup()
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = start(folder, run.name, AGENT, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal)
    os.close(theirs)
    wait_for(lambda: steps(run) >= 3)
    os.close(ours)
    saved_at_once(process, run, signal.SIGHUP)
    assert not [e for e in read_events(run / "events.log") if e.kind == "checkpoint_failed"]


@pytest.mark.parametrize(
    ("where", "command"),
    [
        pytest.param("closed pipe", RANK, id="closed pipe-lst train"),
        pytest.param("closed pipe", AGENT, id="closed pipe-agent", marks=pytest.mark.slow),
        pytest.param("full disk", RANK, id="full disk-lst train", marks=pytest.mark.slow),
        pytest.param("full disk", AGENT, id="full disk-agent"),
    ],
)
def test_output_that_nobody_gets_costs_nothing(folder: Path, command: list[str], where: str) -> None:
    run = folder / f"{where}-{len(command)}".replace(" ", "-")
    if where == "full disk":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    process = start(folder, run.name, command, "training.steps=12", pause=0, stdout=target, stderr=target)
    os.close(target)
    assert process.wait(120) == 0
    assert steps(run) == 12
    assert [c.step for c in complete_checkpoints(run)] == [8, 12]
    assert (outcome.read(run) or {})["state"] == "finished"
    kinds = {event.kind for event in read_events(run / "events.log")}
    assert "checkpoint_failed" not in kinds


@pytest.mark.parametrize("arguments", [["training.lr=-1"], ["training.steps=many"]])
def test_a_mistake_keeps_its_exit_code_where_nobody_reads(folder: Path, arguments: list[str]) -> None:
    target = os.open("/dev/full", os.O_WRONLY)
    process = start(folder, "mistake", RANK, *arguments, stdout=target, stderr=target)
    os.close(target)
    assert process.wait(60) == 2


PRINTS = """
import sys
from megatron_lst.terminal import unfailing_output
def say():
    for _ in range(3):
        print("a \\u00fc " + "x" * 10000, flush=True)
        print("b", file=sys.stderr)
if sys.argv[1] == "kept":
    with unfailing_output():
        say()
else:
    say()
sys.exit(7)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("target", ["/dev/full", "/dev/null"])
def test_a_print_never_fails_and_the_exit_code_stays(target: str, encoding: str) -> None:
    def code(how: str) -> int:
        with open(target, "wb") as file:
            environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
            return subprocess.run(
                [sys.executable, "-c", PRINTS, how], stdout=file, stderr=file, env=environment
            ).returncode

    assert code("kept") == 7
    sound = target == "/dev/null" and encoding == "utf-8"
    assert (code("plain") == 7) == sound, "the control: without it, a print ends the program"


def test_what_can_be_written_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    for how in ("kept", "plain"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
        subprocess.run([sys.executable, "-c", PRINTS, how], env=environment)
    said = capfd.readouterr()
    assert said.out.count("a \u00fc") == 6
    assert said.err == "b\n" * 6
