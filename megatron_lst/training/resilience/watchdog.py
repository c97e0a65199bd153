"""Ends a run that hangs, and says which rank did not arrive.

Every rank has a watchdog thread. A step (or another phase) that takes too long makes each rank write down where it
stands and the stacks of its threads, into `logs/hang-.../`; files, because a hang is often the network's, and because
the process that serves the ranks' store may be the one that hangs. After a moment in which the others do the same, two
ranks on different nodes compare: one that wrote nothing is stopped, dead or cut off; one that is behind the others, or
that is not waiting in a collective while they are, is the one that they wait for. Then every rank exits with code 4.

A rank that failed and said so (`outcome.failed`) ends the others within seconds too, where no launcher does: one rank
of each node looks at the run folder, and the store tells the others.

The thread counts its own ticks, not the clock: a run that the scheduler suspends for hours as a whole, or a laptop
that sleeps, is not a hang.
"""

import contextlib
import faulthandler
import json
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
from typing import Any, Protocol

from megatron_lst.errors import TrainingFault
from megatron_lst.files import read_json, write_json
from megatron_lst.training.resilience import outcome

_COLLECTIVE = re.compile(r"torch/distributed/|megatron/core/(distributed|pipeline_parallel|tensor_parallel/mappings)")


ACCOUNTS_A_FOLDER = 1000
"""So many ranks write into one folder."""


class FailureStore(Protocol):
    """A key-value store that all ranks reach, such as torch.distributed.TCPStore."""

    def set(self, key: str, value: str) -> Any: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


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
        store: FailureStore | None = None,
        local_rank: int = 0,
        node_ranks: int = 1,
        leave: Callable[[int], None] = os._exit,
    ):
        """
        Args:
            seconds: longest time between two calls of `beat` (training.hang_seconds).
            generation: of the run's lock, so that accounts of an earlier start are not taken for this one's.
            grace: how long the ranks wait for each other's accounts of a hang.
            peers: seconds between two looks at whether another rank has failed.
            report: takes the sentence and the step, on the lowest rank that can still speak.
            store: tells ranks of a failure that another one has seen; a connection of its own, so that a main thread
                that waits for the store does not stop the watchdog. None: every rank looks for itself.
            local_rank, node_ranks: this rank's number on its node, and how many are there. The first one looks.
            leave: ends the process; os._exit, because the main thread cannot be reached.
        """
        self._run_dir, self._rank, self._world_size = Path(run_dir), rank, world_size
        self._seconds, self._grace, self._report, self._leave = seconds, grace, report, leave
        self._generation, self._peers = generation, peers
        self._store, self._looks = store, local_rank == 0 or store is None
        # Those that compare the accounts of a hang: the second is on another node, where there is one.
        self._collectors = (0, node_ranks if node_ranks < world_size else 1)
        self._tick = min(1.0, seconds / 10)
        self._pause = min(0.5, grace / 5)
        self._rounds = max(1, round(grace / self._pause))
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
        stopped = self._failure()
        if stopped is None or self._stop.wait(self._grace):
            return
        print(f"rank {self._rank}: leaving, because {outcome.as_error(stopped)}", file=sys.stderr, flush=True)
        self._leave(stopped["exit_code"])

    def _failure(self) -> dict[str, Any] | None:
        """What a rank wrote as it failed: from the run folder on one rank of a node, from the store on the others."""
        key = f"failed/{self._generation}"
        if self._store is not None and not self._looks:
            try:
                return json.loads(self._store.get(key)) if self._store.check([key]) else None
            except (RuntimeError, ValueError):  # the process that serves it has gone
                self._looks = True
        stopped = outcome.read(self._run_dir)
        if stopped is None or stopped["state"] != "failed":
            return None
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set(key, json.dumps(stopped))
        return stopped

    def _folder(self, step: int) -> Path:
        return self._run_dir / "logs" / f"hang-start{self._generation:08d}-step{step:08d}"

    def _account(self, step: int) -> Path:
        """A file of this rank's; on many ranks a thousand to a folder."""
        folder = self._folder(step)
        return (
            folder if self._world_size <= ACCOUNTS_A_FOLDER else folder / f"{self._rank // ACCOUNTS_A_FOLDER:03d}"
        ) / (f"rank-{self._rank:05d}.json")

    def _tell(self) -> None:
        beats, step, phase = self._state
        folder, account = self._folder(step), self._account(step)
        account.parent.mkdir(parents=True, exist_ok=True)
        frames = traceback.extract_stack(sys._current_frames()[self._main]) if self._main else []
        with open(account.with_suffix(".txt"), "w") as file:
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
        write_json(account, mine)
        if self._rank not in self._collectors and self._is_told(step, folder):
            return
        accounts = self._collect(step)
        why = explain(accounts, self._world_size)
        sentence = f"no progress for {self._seconds:.0f} s in step {step}: {why}; stacks: {folder}"
        print(f"rank {self._rank}: {sentence}", file=sys.stderr, flush=True)
        tellers = [rank for rank in self._collectors if rank in accounts] or sorted(accounts)
        if self._rank == min(tellers, default=self._rank):
            outcome.failed(self._run_dir, TrainingFault(sentence), rank=self._rank, step=step, retry=True)
            if self._report is not None:
                self._report(sentence, step)

    def _collect(self, step: int) -> dict[int, dict[str, Any]]:
        """Every rank's account; a rank that is one step behind writes into that step's folder. Each is opened once."""
        folders = [self._folder(s) for s in (step - 1, step, step + 1)]
        accounts: dict[int, dict[str, Any]] = {}
        seen: set[Path] = set()
        for _ in range(self._rounds):
            for path in [p for folder in folders for p in folder.rglob("rank-*.json") if p not in seen]:
                account = read_json(path)
                if account is None:
                    continue
                seen.add(path)
                before = accounts.get(account["rank"])
                if before is None or before["step"] < account["step"]:
                    accounts[account["rank"]] = account
            if len(accounts) == self._world_size:
                break
            time.sleep(self._pause)
        return accounts

    def _is_told(self, step: int, folder: Path) -> bool:
        """Wait until those that compare have told. False on one rank of a node where they have not: they hang too."""
        for _ in range(2 * self._rounds):
            if self._failure() is not None:
                break
            time.sleep(self._pause)
        else:
            if self._looks:
                return False
        sentence = f"no progress for {self._seconds:.0f} s in step {step}; stacks: {folder}"
        print(f"rank {self._rank}: {sentence}", file=sys.stderr, flush=True)
        return True


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
