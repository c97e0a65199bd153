"""Items of work and their receipts.

A *stage* is a number of items and a factory. The factory is called once in every worker and returns the function that
does one item: it writes its files under temporary names, renames them, and returns a JSON-able result, which goes into
the item's receipt. An item with a receipt of the same plan is never done again, so a rerun does what is missing, and
several machines may take different slices of the items (`--items 3/16` in a SLURM array).
"""

import contextlib
import errno
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst_prep.reading import CannotRead
from lst_prep.unread import JobFault
from megatron_lst.errors import LstError, UserError, of_missing_module
from megatron_lst.files import write_bytes

Work = Callable[[int], dict[str, Any]]
Factory = Callable[..., Work]
Outcome = tuple[str, Any]
"""(kind, what belongs to it): see `do_item` and `ItemWorker`."""
COUNTED = ("audio_seconds", "note", "files_read")
"""Keys of a result that progress counts; all of it is in the receipt."""
MODEL_SECONDS = "model_seconds"
"""Key of a result: seconds that its model computed. For progress; receipts are the same every time."""


@dataclass(frozen=True)
class AheadWork:
    """`Work` that begins to load one item while it does the one before.

    Attributes:
        do: the work.
        expect: called before it with the item that comes after it; None: not known.
        end: called behind it, whatever came of it.
        close: called when no more items come.
    """

    do: Work
    expect: Callable[[int | None], None]
    end: Callable[[int], None]
    close: Callable[[], None]

    def __call__(self, item: int) -> dict[str, Any]:
        try:
            return self.do(item)
        finally:
            self.end(item)


class Stopwatch:
    """Adds up the seconds inside its `with`."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(frozen=True)
class Stage:
    """Attributes:
    name: folder of the receipts and label of the progress.
    items: number of items; item ids are 0 .. items-1.
    factory: importable function; `factory(*arguments)` runs in the worker.
    arguments: picklable.
    gpu: its model runs on a GPU where there is one.
    ahead: a worker is told its next item while it does one, see `AheadWork`.
    """

    name: str
    items: int
    factory: Factory
    arguments: tuple[Any, ...] = ()
    gpu: bool = False
    ahead: bool = False


class Receipts:
    """The finished items of one stage."""

    def __init__(self, work: Path, stage: str, plan: str) -> None:
        self.work = work
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
            file = self.work / name
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

    def remove(self, item: int) -> None:
        """The item has to be done again."""
        self._path(item).unlink(missing_ok=True)

    def write(self, item: int, result: dict[str, Any]) -> None:
        """Mark the item done."""
        if "files" in result:
            files = {os.path.relpath(name, self.work): size for name, size in result["files"].items()}
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
        raise JobFault(said(error)) from error


def said(error: OSError) -> str:
    """What a person is told of an error of a file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; the same command goes on where this one ended"


def do_item(function: Work, receipts: Receipts, item: int, following: int | None = None) -> Outcome:
    """Do one item: ("done", what progress counts of its result), or ("unread", ({file: why}, files tried)) without a
    receipt.

    Args:
        following: the item after it, where that is known.
    """
    began = time.perf_counter()
    try:
        with full_disk_is_the_users():
            if isinstance(function, AheadWork):
                function.expect(following)
            result = function(item)
            busy = result.pop(MODEL_SECONDS, None)
            receipts.write(item, result)
    except CannotRead as error:
        return "unread", (error.files, error.tried)
    except OSError as error:  # of the work folder, or of an input that is not opened by `Inputs`
        return "unread", ({str(error.filename or f"item {item}"): error.strerror or str(error)}, 1)
    counted = {key: result[key] for key in COUNTED if key in result}
    return "done", counted if busy is None else {**counted, "busy": (busy, time.perf_counter() - began)}


class ItemWorker:
    """What does items in another process. Its methods raise nothing: they return what came of it."""

    def __init__(self, stage: Stage, receipts: Receipts) -> None:
        self._stage, self._receipts = stage, receipts
        self._function: Work | None = None

    def start(self) -> Outcome:
        """Call the factory: ("ready", None), or why it cannot be."""
        try:
            self._function = self._stage.factory(*self._stage.arguments)
        except BaseException as error:
            return self._failed(error)
        return "ready", None

    def close(self) -> None:
        """No more items come."""
        if isinstance(self._function, AheadWork):
            self._function.close()

    def do(self, item: int, following: int | None = None) -> Outcome:
        """`do_item`, or ("user" | "fault" | "bug", message)."""
        assert self._function is not None, "started first"
        try:
            return do_item(self._function, self._receipts, item, following)
        except BaseException as error:
            return self._failed(error)

    @staticmethod
    def _failed(error: BaseException) -> Outcome:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        if isinstance(error, UserError):
            return "user", str(error)
        if isinstance(error, OSError):  # while it starts, before the first item
            return "fault", said(error)
        if isinstance(error, LstError):
            return "fault", str(error)
        if isinstance(error, ModuleNotFoundError) and (missing := of_missing_module(error)):
            return "user", str(missing)
        return "bug", "".join(traceback.format_exception(error))
