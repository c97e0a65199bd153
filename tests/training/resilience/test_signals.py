"""A signal on one rank stops all of them at the same step; STOPPED.json says what should follow."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_lst.errors import TrainingFault
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.signals import ORDER, StopSignals, agreed


def test_a_signal_is_remembered():
    with StopSignals() as stop:
        assert agreed(stop.numbers()) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert agreed(stop.numbers()) == signal.SIGUSR1


def test_a_late_signal_does_not_kill_a_rank_on_its_way_out():
    code = """
import os, signal
from megatron_lst.training.resilience.signals import StopSignals
with StopSignals():
    os.kill(os.getpid(), {first})
os.kill(os.getpid(), {second})
print("out")"""
    for first, second, code_expected in ((10, 10, 0), (15, 10, 0), (15, 15, 0), (10, 15, 0), (0, 10, 0), (0, 15, -15)):
        done = subprocess.run([sys.executable, "-c", code.format(first=first, second=second)], timeout=60)
        assert done.returncode == code_expected, (first, second)


@pytest.mark.parametrize("late", ["late", "ignored by its parent"])
def test_programs_that_are_started_after_a_run_hear_the_signals(late):
    """Such as the job script of another run: bash cannot trap what it was started to ignore."""
    code = """
import signal, subprocess, sys
from megatron_lst.training.resilience.signals import StopSignals
with StopSignals():
    signal.raise_signal(signal.SIGTERM)
if sys.argv[1] != "late":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
look = "import signal; print(signal.getsignal(15) == signal.getsignal(10) == signal.SIG_DFL)"
subprocess.run([sys.executable, "-c", look], check=True)"""
    done = subprocess.run([sys.executable, "-c", code, late], timeout=60, capture_output=True, text=True, check=True)
    assert done.stdout == f"{late == 'late'}\n"


def test_handlers_come_back():
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        mine = signal.getsignal(signal.SIGUSR1)
        with StopSignals():
            assert signal.getsignal(signal.SIGUSR1) is not mine
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_restart_wins_over_the_plain_stop():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received == signal.SIGUSR1


def test_another_ranks_signal_counts():
    with StopSignals() as one, StopSignals() as other:
        os.kill(os.getpid(), signal.SIGTERM)  # the inner handlers get it
        assert one.received is None
        sums = [mine + theirs for mine, theirs in zip(one.numbers(), other.numbers(), strict=True)]
        assert agreed(sums) == signal.SIGTERM


@pytest.mark.parametrize("received", [(10,), (15, 1), (1, 2), (2, 15, 10), (2,)])
def test_what_wins_is_the_same_on_any_number_of_ranks(received):
    counts = [received.count(number) * 5000 for number in ORDER]
    assert agreed(counts) == next(n for n in (10, 15, 1, 2) if n in received)


def test_a_second_interrupt_is_at_once():
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outcomes(tmp_path):
    outcome.saved(tmp_path, 7, signal.SIGUSR1)
    assert (outcome.read(tmp_path)["state"], outcome.read(tmp_path)["next"]) == ("saved", "requeue")
    assert '\n "next": "requeue"' in (tmp_path / "STOPPED.json").read_text()  # what shell scripts look for
    outcome.saved(tmp_path, 7, signal.SIGTERM)
    assert outcome.read(tmp_path)["next"] == "stop"
    outcome.finished(tmp_path, 9)
    assert (outcome.read(tmp_path)["next"], outcome.read(tmp_path)["step"]) == ("finished", 9)
    outcome.clear(tmp_path)
    assert outcome.read(tmp_path) is None


def test_the_first_failure_counts(tmp_path):
    with pytest.raises(TrainingFault) as caught:
        raise TrainingFault("loss is nan")
    assert outcome.failed(tmp_path, caught.value, rank=3, step=5)
    assert not outcome.failed(tmp_path, RuntimeError("connection closed by peer"), rank=0, step=5)
    stopped = outcome.read(tmp_path)
    assert (stopped["rank"], stopped["exit_code"], stopped["next"]) == (3, 4, "stop")
    assert "loss is nan" in stopped["error"]
    assert "Traceback" in (tmp_path / "logs" / "error-rank00003.txt").read_text()
    assert "connection closed" in (tmp_path / "logs" / "error-rank00000.txt").read_text()


RANK = """
import json, os, sys, time, torch, torch.distributed as dist
from megatron_lst.training.resilience.signals import StopSignals, agreed
dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
def summed(values):
    t = torch.tensor(values); dist.all_reduce(t); return t.tolist()
with StopSignals() as stop:
    for step in range(1, 10_000):
        time.sleep(0.002 * (1 + dist.get_rank()))
        if step == 1: print("going", flush=True)
        if number := agreed(summed(stop.numbers())): break
print(json.dumps([step, int(number), int(stop.received or 0)]), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.multiprocess
def test_one_rank_is_signalled_and_both_stop_at_one_step(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, f"file://{tmp_path}/store", str(rank)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        assert all(p.stdout.readline() == "going\n" for p in ranks)
        time.sleep(0.2)
        ranks[1].send_signal(signal.SIGUSR1)
        (step0, number0, received0), (step1, number1, received1) = (json.loads(p.stdout.readline()) for p in ranks)
        assert [p.wait(30) for p in ranks] == [0, 0]
    finally:
        for p in ranks:
            p.kill()
            p.wait()
    assert step0 == step1 > 1
    assert number0 == number1 == signal.SIGUSR1
    assert (received0, received1) == (0, signal.SIGUSR1)


def test_a_lost_peer_is_worth_another_start(tmp_path):
    outcome.failed(tmp_path, RuntimeError("connection closed by peer"), rank=1, step=5)
    assert (outcome.read(tmp_path)["exit_code"], outcome.read(tmp_path)["next"]) == (1, "retry")
