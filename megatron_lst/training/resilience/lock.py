"""One run folder, one job. Works on shared file systems: hard links and folder listings, no flock.

`.lock/generation-00000003.json` says who holds the folder; the highest generation wins, and a new one is made by
exactly one of several that try. The holder touches `generation-00000003.alive` now and then. A job that was requeued
takes over from itself at once; anyone else only from a holder that released the lock, died on this machine, or has
not given a sign of life for long. An orphan that still runs somewhere finds the higher generation at its next
`check` and stops before it writes.
"""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from megatron_lst.errors import TrainingFault, UserError
from megatron_lst.files import create_json, read_json

_GENERATION = re.compile(r"^generation-(\d{8})\.json$")


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder.

    Attributes:
        job: cluster and job id, "" outside a scheduler.
        restart: how often the scheduler has requeued the job.
        attempt: how often the launcher has started it again within that.
        host, pid: the process; `born`, `machine` tell it from another one with the same number later or elsewhere.
    """

    job: str
    restart: int
    attempt: int
    host: str
    pid: int
    born: float
    machine: str

    @staticmethod
    def me(environment: Mapping[str, str] = os.environ) -> "Holder":
        job = environment.get("SLURM_JOB_ID", "")
        cluster = environment.get("SLURM_CLUSTER_NAME", "")
        return Holder(
            job=f"{cluster}/{job}" if job and cluster else job,
            restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
            attempt=int(environment.get("LST_ATTEMPT") or environment.get("TORCHELASTIC_RESTART_COUNT") or 0),
            host=socket.gethostname(),
            pid=os.getpid(),
            born=psutil.Process().create_time(),
            machine=_machine(),
        )

    def succeeds(self, other: "Holder") -> bool:
        """True for a later start of the same job."""
        return (
            bool(self.job) and self.job == other.job and (self.restart, self.attempt) > (other.restart, other.attempt)
        )

    def is_dead(self) -> bool:
        """True only when this machine can tell: same boot, same process namespace, and no such process."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        job = f"job {self.job} (restart {self.restart}), " if self.job else ""
        return f"{job}process {self.pid} on {self.host}"


def _machine() -> str:
    """Names the boot and the process namespace: process numbers mean the same only within both."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


class RunLock:
    """The lock of one run folder, held by the process that writes it.

    Attributes:
        generation: this holder's number; other ranks compare it with `check`.
        took_over: one sentence about the holder that this one replaced, None if there was none.
    """

    def __init__(self, run_dir: str | Path, *, stale_seconds: float = 300.0, me: Holder | None = None):
        """Take the lock.

        Args:
            run_dir: made if missing.
            stale_seconds: a holder without a sign of life for this long is gone.

        Raises:
            UserError: someone else holds it; names who, and what to do.
        """
        self._folder = Path(run_dir) / ".lock"
        self._stale, self._me = stale_seconds, me or Holder.me()
        self._stop = threading.Event()
        self.took_over: str | None = None
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            newest = newest_generation(self._folder)
            reason = self._reason_to_take(newest) if newest else None
            self.generation = newest + 1
            self._alive = _path(self._folder, self.generation, "alive")
            self._alive.touch()
            if create_json(_path(self._folder, self.generation, "json"), asdict(self._me)):
                break  # otherwise someone was faster: look at that one
        self.took_over = reason
        for old in range(max(1, newest - 1), newest):
            for kind in ("json", "alive", "released"):
                _path(self._folder, old, kind).unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def _reason_to_take(self, newest: int) -> str | None:
        if _path(self._folder, newest, "released").exists():
            return None
        holder = _read(_path(self._folder, newest, "json"))
        if holder is None:
            return f"generation {newest} of the lock cannot be read"
        if self._me.succeeds(holder):
            return f"took over from an earlier start of this job: {holder}"
        if holder.is_dead():
            return f"took over from a run that died: {holder}"
        silent = self._silence(newest)
        if silent > self._stale:
            return f"took over from a run without a sign of life for {silent:.0f} s: {holder}"
        raise UserError(
            f"{self._folder.parent} belongs to a run that is alive: {holder}, last sign of life {silent:.0f} s ago. "
            f"Choose another run.dir, or end that run first. If you are certain that it has ended, remove "
            f"{self._folder}; without a sign of life for {self._stale:.0f} s it counts as ended"
        )

    def _silence(self, generation: int) -> float:
        """Seconds since the last sign of life, both ends by the file system's clock, not this machine's."""
        ruler = self._folder / f"now.{self._me.host}.{self._me.pid}"
        try:
            ruler.touch()
            sign = _path(self._folder, generation, "alive")
            if not sign.exists():
                sign = _path(self._folder, generation, "json")
            return max(0.0, ruler.stat().st_mtime - sign.stat().st_mtime)
        except OSError:
            return 0.0
        finally:
            ruler.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(min(30.0, self._stale / 5)):
            with contextlib.suppress(OSError):  # a full disk or a file system that is away for a moment
                os.utime(self._alive)

    def check(self) -> None:
        """To be called before every write: one folder listing.

        Raises:
            TrainingFault: a newer generation holds the folder; nothing may be written any more.
        """
        check(self._folder.parent, self.generation)

    def release(self) -> None:
        """Give the folder back; a no-op for an orphan."""
        self._stop.set()
        self._thread.join(timeout=5)
        if newest_generation(self._folder) == self.generation:
            _path(self._folder, self.generation, "released").touch()
            self._alive.unlink(missing_ok=True)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def check(run_dir: str | Path, generation: int) -> None:
    """`RunLock.check` for ranks that hold no lock themselves, before they write their part of a checkpoint.

    Raises:
        TrainingFault: a newer generation holds the folder.
    """
    folder = Path(run_dir) / ".lock"
    newest = newest_generation(folder)
    if newest > generation:
        holder = _read(_path(folder, newest, "json"))
        raise TrainingFault(
            f"{run_dir} was taken over by {holder or 'another run'} (generation {newest}, this is {generation}): "
            "this run stops and writes nothing more"
        )
    if newest < generation:
        raise TrainingFault(f"{folder} was removed under this run: it stops and writes nothing more")


def newest_generation(folder: Path) -> int:
    """The highest generation, 0 if there is none. Opening the folder makes an NFS client ask the server."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    return max((int(match[1]) for match in map(_GENERATION.match, names) if match), default=0)


def _path(folder: Path, generation: int, kind: str) -> Path:
    return folder / f"generation-{generation:08d}.{kind}"


def _read(path: Path) -> Holder | None:
    content: dict[str, Any] | None = read_json(path)
    try:
        return Holder(**{f.name: (content or {})[f.name] for f in fields(Holder)})
    except (KeyError, TypeError):
        return None
