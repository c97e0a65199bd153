"""Ends a run that hangs, and says which rank did not arrive.

Every rank has a watchdog thread. A step (or another phase) that takes too long makes each rank write down where it
stands and the stacks of its threads, into `logs/hang-.../`; files, because a hang is often the network's, and because
the process that serves the ranks' store may be the one that hangs. After a moment in which the others do the same,
the ranks compare: one that wrote nothing is stopped, dead or cut off; one that is behind the others, or that is not
waiting in a collective while they are, is the one that they wait for. Then every rank exits with code 4.

A rank that failed and said so (`outcome.failed`) ends the others within seconds too, where no launcher does.

The thread counts its own ticks, not the clock: a run that the scheduler suspends for hours as a whole, or a laptop
that sleeps, is not a hang.
"""

import faulthandler
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_lst.errors import TrainingFault
from megatron_lst.files import read_json, write_json
from megatron_lst.training.resilience import outcome

_COLLECTIVE = re.compile(r"torch/distributed/|megatron/core/(distributed|pipeline_parallel|tensor_parallel/mappings)")


class Watchdog:
    """Watches one rank; every rank of a run has one."""

    def __init__(
        self,
        run_dir: str | Path,
        *,
        rank: int,
        world_size: int,
        seconds: float,
        generation: int = 0,
        grace: float = 10.0,
        peers: float = 5.0,
        report: Callable[[str, int], None] | None = None,
        leave: Callable[[int], None] = os._exit,
    ):
        """
        Args:
            seconds: longest time between two calls of `beat` (training.hang_seconds).
            generation: of the run's lock, so that accounts of an earlier start are not taken for this one's.
            grace: how long the ranks wait for each other's accounts of a hang.
            peers: seconds between two looks at whether another rank has failed.
            report: takes the sentence and the step, on the lowest rank that can still speak.
            leave: ends the process; os._exit, because the main thread cannot be reached.
        """
        self._run_dir, self._rank, self._world_size = Path(run_dir), rank, world_size
        self._seconds, self._grace, self._report, self._leave = seconds, grace, report, leave
        self._generation, self._peers = generation, peers
        self._tick = min(1.0, seconds / 10)
        self._main = threading.main_thread().ident
        self._lock = threading.Lock()
        self._state: tuple[int, int, str] = (0, 0, "start")  # beats, step, phase
        self._waited = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * self._tick + 1)

    def beat(self, step: int, phase: str = "step") -> None:
        """This rank got to `phase` of `step`. Cheap: no I/O, no device. Every rank beats in the same order.

        Args:
            phase: data, step, checkpoint, evaluation, ...
        """
        with self._lock:
            self._state = (self._state[0] + 1, step, phase)
            self._waited = 0.0

    def _watch(self) -> None:
        before = looked = time.monotonic()
        while not self._stop.wait(self._tick):
            now = time.monotonic()
            gap, before = now - before, now
            with self._lock:
                self._waited += min(gap, 2 * self._tick)  # more than that: this process itself was suspended
                late = self._waited > self._seconds
            if now - looked > self._peers:
                looked = now
                self._follow_a_failure()
            if late:
                try:
                    self._tell()
                finally:
                    self._leave(TrainingFault.exit_code)
                return

    def _follow_a_failure(self) -> None:
        """Another rank failed: leave too, after a moment in which this one may get out by itself."""
        stopped = outcome.read(self._run_dir)
        if not stopped or stopped["state"] != "failed" or self._stop.wait(self._grace):
            return
        print(f"rank {self._rank}: leaving, because {outcome.as_error(stopped)}", file=sys.stderr, flush=True)
        self._leave(stopped["exit_code"])

    def _folder(self, step: int) -> Path:
        return self._run_dir / "logs" / f"hang-start{self._generation:08d}-step{step:08d}"

    def _tell(self) -> None:
        beats, step, phase = self._state
        folder = self._folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        frames = traceback.extract_stack(sys._current_frames()[self._main]) if self._main else []
        with open(folder / f"rank-{self._rank:05d}.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        here = frames[-1] if frames else None
        mine = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "beats": beats,
            "step": step,
            "phase": phase,
            "waits": any(_COLLECTIVE.search(frame.filename) for frame in frames),
            "at": f"{here.filename}:{here.lineno} in {here.name}" if here else "?",
        }
        write_json(folder / f"rank-{self._rank:05d}.json", mine)
        accounts = self._collect(step)
        why = explain(accounts, self._world_size)
        sentence = f"no progress for {self._seconds:.0f} s in step {step}: {why}; stacks: {folder}"
        print(f"rank {self._rank}: {sentence}", file=sys.stderr, flush=True)
        if self._rank == min(accounts, default=self._rank):
            outcome.failed(self._run_dir, TrainingFault(sentence), rank=self._rank, step=step, retry=True)
            if self._report is not None:
                self._report(sentence, step)

    def _collect(self, step: int) -> dict[int, dict[str, Any]]:
        """Every rank's account; a rank that is one step behind writes into that step's folder."""
        folders = [self._folder(s) for s in (step - 1, step, step + 1)]
        accounts: dict[int, dict[str, Any]] = {}
        pause = min(0.5, self._grace / 5)
        for _ in range(max(1, round(self._grace / pause))):
            for rank in set(range(self._world_size)) - accounts.keys():
                found = filter(None, (read_json(f / f"rank-{rank:05d}.json") for f in folders))
                account = max(found, key=lambda a: a["step"], default=None)
                if account is not None:
                    accounts[rank] = account
            if len(accounts) == self._world_size:
                break
            time.sleep(pause)
        return accounts


def explain(accounts: dict[int, dict[str, Any]], world_size: int) -> str:
    """Which rank did not arrive, from every rank's own account of a hang.

    Args:
        accounts: rank -> {host, pid, beats, step, phase, waits, at}, of those ranks that could write one.
    """
    silent = sorted(set(range(world_size)) - accounts.keys())
    if silent:
        names = ", ".join(map(str, silent[:16])) + (", ..." if len(silent) > 16 else "")
        return f"rank {names} did not answer (stopped, dead, or its machine is gone)"
    most = max(account["beats"] for account in accounts.values())
    behind = [a for a in accounts.values() if a["beats"] < most]
    if not behind:
        idle = [a for a in accounts.values() if not a["waits"]]
        behind = idle if len(idle) < len(accounts) else []
    if not behind:
        return "all ranks are at the same place, so that none can be named; compare the stacks"
    return "; ".join(
        f"rank {a['rank']} on {a['host']} (process {a['pid']}) did not arrive: "
        f"{a['phase']} of step {a['step']}, {a['at']}"
        for a in behind[:8]
    )
