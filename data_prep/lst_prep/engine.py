"""The job engine: items of work, one atomic receipt each, a local pool that survives killed workers.

A *stage* is a number of items and a factory. The factory is called once in every worker and returns the function that
does one item: it writes its files under temporary names, renames them, and returns a JSON-able result, which goes into
the item's receipt. An item with a receipt of the same plan is never done again, so a rerun does what is missing, and
several machines may take different slices of the items (`--items 3/16` in a SLURM array).
"""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lst_prep.progress import StageProgress
from lst_prep.reading import CannotRead
from lst_prep.unread import JobFault, Unread
from megatron_lst.errors import LstError, UserError
from megatron_lst.files import write_bytes

Work = Callable[[int], dict[str, Any]]
Factory = Callable[..., Work]


@dataclass(frozen=True)
class Stage:
    """Attributes:
    name: folder of the receipts and label of the progress.
    items: number of items; item ids are 0 .. items-1.
    factory: importable function; `factory(*arguments)` runs in the worker.
    arguments: picklable.
    """

    name: str
    items: int
    factory: Factory
    arguments: tuple[Any, ...] = ()


class Receipts:
    """The finished items of one stage."""

    def __init__(self, work: Path, stage: str, plan: str) -> None:
        self._root = work
        self._folder = work / stage / "receipts"
        self._stage, self._plan = stage, plan

    def _path(self, item: int) -> Path:
        return self._folder / f"{item // 1000:04d}" / f"{item:07d}.json"

    def read(self, item: int) -> dict[str, Any] | None:
        """The item's result, or None when it has to be done (again)."""
        receipt = self._load(self._path(item))
        if receipt is None or receipt.get("plan") != self._plan or receipt.get("item") != item:
            return None
        for name, size in receipt["result"].get("files", {}).items():
            file = self._root / name
            if not file.exists() or (size is not None and file.stat().st_size != size):
                return None
        return dict(receipt["result"])

    def _load(self, path: Path) -> dict[str, Any] | None:
        """None: there is none, or half of one. Any other error is raised: a receipt is not made twice unseen."""
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def items(self) -> list[int]:
        """Items that have a receipt, of whatever plan."""
        return sorted(int(path.stem) for path in self._folder.glob("*/*.json"))

    def any(self, key: str) -> Any:
        """What some finished item's result has under `key`, found without looking at all of them; None: none has it."""
        for path in self._folder.glob("*/*.json"):
            receipt = self._load(path)
            if receipt is not None and receipt.get("plan") == self._plan and receipt["result"].get(key) is not None:
                return receipt["result"][key]
        return None

    def write(self, item: int, result: dict[str, Any]) -> None:
        """Mark the item done."""
        if "files" in result:
            files = {os.path.relpath(name, self._root): size for name, size in result["files"].items()}
            result = {**result, "files": files}
        receipt = {"plan": self._plan, "stage": self._stage, "item": item, "result": result}
        write_bytes(self._path(item), json.dumps(receipt).encode())


def slice_items(items: int, part: str | None) -> range:
    """`i/n` (i counts from 0) -> the items that this machine takes. None: all of them."""
    if part is None:
        return range(items)
    try:
        index, count = (int(value) for value in part.split("/"))
    except ValueError:
        raise UserError(f"--items {part!r}: expected i/n, for instance 0/16") from None
    if not 0 <= index < count:
        raise UserError(f"--items {part!r}: i counts from 0 to n - 1, so the last is {count - 1}/{count}")
    return range(index, items, count)


@contextlib.contextmanager
def lock(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a folder's lock; a second run on one output folder is refused, not mixed in.

    Raises:
        UserError: someone else holds it, or the folder cannot be written or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise UserError(f"{path.parent}: another preparation works in this folder ({holder})") from error
    except OSError as error:
        handle.close()
        raise UserError(f"{path}: cannot be locked ({error.strerror}); does the file system know flock?") from error
    try:
        handle.truncate(0)
        handle.write(f"{socket.gethostname()} pid {os.getpid()}")
        handle.flush()
        yield
    finally:
        handle.close()


def run_stage(
    stage: Stage,
    work: Path,
    plan: str,
    workers: int,
    attempts: int = 3,
    part: str | None = None,
    quiet: bool = False,
    check: Callable[[], None] = lambda: None,
    max_unreadable: float = 0.05,
) -> None:
    """Do every item of a stage that has no receipt.

    Args:
        work: folder under which receipts lie.
        plan: fingerprint of everything that the results depend on.
        workers: processes; 1 works in this process.
        attempts: how often an item whose worker dies is tried.
        part: the slice of items to do, see `slice_items`.
        check: called once before the first item, if there is one to do; raises what speaks against it.
        max_unreadable: the stage stops when a larger share of the files that it tried cannot be read (of 100 or more).

    Raises:
        UserError: raised by an item (for instance a full disk), or by `check`.
        JobFault: items whose workers died `attempts` times, or whose inputs cannot be read now; everything else is done
            by then, but when too many cannot.
        RuntimeError: a bug in an item, with the worker's traceback.
    """
    receipts = Receipts(work, stage.name, plan)
    mine = slice_items(stage.items, part)
    todo = [item for item in mine if receipts.read(item) is None]
    if todo:
        check()
    with StageProgress(stage.name, len(mine), len(mine) - len(todo), _quiet() if quiet else None) as progress:
        if not todo:
            return

        name = f"unreadable-{stage.name}{'-' + part.replace('/', '-of-') if part else ''}.txt"
        unread = Unread(stage.name, max_unreadable, work / name)

        def finished(result: dict[str, Any]) -> None:
            unread.well(result)
            progress.advance(1, float(result.get("audio_seconds", 0.0)), str(result.get("note", "")))

        if workers == 1:
            function = stage.factory(*stage.arguments)
            for item in todo:
                kind, payload = _do(function, receipts, item)
                if kind == "done":
                    finished(payload)
                else:
                    unread.failed(*payload)
        else:
            _Pool(stage, receipts, min(workers, len(todo)), attempts).run(todo, finished, unread.failed)
        unread.end()


def _do(function: Work, receipts: Receipts, item: int) -> tuple[str, Any]:
    """Do one item: ("done", result), or ("unread", ({file: why}, files tried)) without a receipt."""
    try:
        with full_disk_is_the_users():
            result = function(item)
            receipts.write(item, result)
    except CannotRead as error:
        return "unread", (error.files, error.tried)
    except OSError as error:  # of the work folder, or of an input that is not opened by `Inputs`
        return "unread", ({str(error.filename or f"item {item}"): error.strerror or str(error)}, 1)
    return "done", result


def _quiet() -> Any:
    return open(os.devnull, "w")


@contextlib.contextmanager
def full_disk_is_the_users() -> Iterator[None]:
    """Raises UserError in place of `no space left` and `quota exceeded`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left while writing {error.filename or 'an item'}: "
                f"free some and run again; what is done stays done"
            ) from error
        raise


@contextlib.contextmanager
def faults_of_files_are_said() -> Iterator[None]:
    """Around a command: raises UserError for a full disk, JobFault in place of every other error of a file."""
    try:
        with full_disk_is_the_users():
            yield
    except OSError as error:
        raise JobFault(_said(error)) from error


def _said(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; the same command goes on where this one ended"


def _worker(connection: Connection, stage: Stage, receipts: Receipts) -> None:
    """Body of a worker process: items come in, (item, kind, payload) goes out. Ends when the parent does."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        function = stage.factory(*stage.arguments)
        connection.send((-1, "ready", None))
        while True:
            item = connection.recv()
            connection.send((item, *_do(function, receipts, item)))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except UserError as error:
        connection.send((-1, "user", str(error)))
    except OSError as error:  # while it starts, before the first item
        connection.send((-1, "fault", _said(error)))
    except LstError as error:
        connection.send((-1, "fault", str(error)))
    except BaseException:
        connection.send((-1, "bug", traceback.format_exc()))


class _Pool:
    """Worker processes that are replaced when they die."""

    def __init__(self, stage: Stage, receipts: Receipts, size: int, attempts: int) -> None:
        self._stage, self._receipts, self._size, self._attempts = stage, receipts, size, attempts
        self._context = multiprocessing.get_context("spawn")
        self._alive: dict[Connection, tuple[Any, int | None]] = {}
        self._early_deaths = 0

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_worker, args=(theirs, self._stage, self._receipts), daemon=True, name=f"prep-{self._stage.name}"
        )
        process.start()
        theirs.close()
        self._alive[ours] = (process, None)

    def run(
        self,
        todo: list[int],
        finished: Callable[[dict[str, Any]], None],
        unread: Callable[[dict[str, str], int], None],
    ) -> None:
        waiting, tries, lost = deque(todo), dict.fromkeys(todo, 0), list[int]()
        try:
            for _ in range(self._size):
                self._start()
            while self._alive:
                for connection in wait(list(self._alive)):
                    assert isinstance(connection, Connection)
                    process, item = self._alive[connection]
                    try:
                        _, kind, payload = connection.recv()
                    except (EOFError, ConnectionResetError):
                        self._close_worker(connection)
                        self._give_back(item, tries, waiting, lost)
                        if waiting:
                            self._start()
                        continue
                    if kind == "user":
                        raise UserError(payload)
                    if kind == "fault":
                        raise JobFault(payload)
                    if kind == "bug":
                        raise RuntimeError(f"stage {self._stage.name}, item {item}:\n{payload}")
                    if kind == "done":
                        finished(payload)
                    if kind == "unread":
                        unread(*payload)
                    self._feed(connection, process, waiting)
        finally:
            for connection in list(self._alive):
                self._alive[connection][0].terminate()
                self._close_worker(connection)
        if lost:
            raise JobFault(
                f"stage {self._stage.name}: the workers of items {sorted(lost)} died {self._attempts} times each "
                f"(out of memory?); everything else is done, run again to retry them"
            )

    def _feed(self, connection: Connection, process: Any, waiting: deque[int]) -> None:
        if waiting:
            item = waiting.popleft()
            self._alive[connection] = (process, item)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(item)
        else:
            self._close_worker(connection)

    def _close_worker(self, connection: Connection) -> None:
        """Close the connection to a worker that has ended, or ends now, and wait for its process."""
        process, _ = self._alive.pop(connection)
        connection.close()
        process.join(timeout=30)

    def _give_back(self, item: int | None, tries: dict[int, int], waiting: deque[int], lost: list[int]) -> None:
        """A worker died: give its item back, unless it died of it too often."""
        if item is None:
            self._early_deaths += 1
            if self._early_deaths > 2 * self._size + self._attempts:
                raise JobFault(f"stage {self._stage.name}: workers die before they start; see the messages above")
            return
        tries[item] += 1
        print(f"prep {self._stage.name}: the worker of item {item} died (attempt {tries[item]})", file=sys.stderr)
        if tries[item] < self._attempts:
            waiting.append(item)
        else:
            lost.append(item)
