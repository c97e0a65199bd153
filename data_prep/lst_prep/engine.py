"""The job engine: items of work, one atomic receipt each, done by processes of this machine or by a Ray cluster."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lst_prep.dealing import Dealing
from lst_prep.items import AheadWork, Outcome, Receipts, Stage, do_item, slice_items
from lst_prep.jobs import Jobs
from lst_prep.pool import Pool
from lst_prep.progress import StageProgress
from lst_prep.unread import Unread
from megatron_lst.errors import UserError
from megatron_lst.gpu import gpu_is_usable
from megatron_lst.machine import usable_cores


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
    jobs: Jobs,
    part: str | None = None,
    quiet: bool = False,
    check: Callable[[], None] = lambda: None,
    max_unreadable: float = 0.05,
    only: Sequence[int] | None = None,
) -> None:
    """Do every item of a stage that has no receipt.

    Args:
        work: folder under which receipts lie.
        plan: fingerprint of everything that the results depend on.
        jobs: who does it. One local worker is this process.
        part: the slice of items to do, see `slice_items`.
        check: called once before the first item, if there is one to do; raises what speaks against it.
        max_unreadable: the stage stops when a larger share of the files that it tried cannot be read (of 100 or more).
        only: items to do; None: all of `part`.

    Raises:
        UserError: raised by an item (for instance a full disk), or by `check`.
        JobFault: items whose workers died `jobs.attempts` times, or whose inputs cannot be read now; everything else
            is done by then, but when too many cannot.
        RuntimeError: a bug in an item, with the worker's traceback.
    """
    receipts = Receipts(work, stage.name, plan)
    mine = slice_items(stage.items, part) if only is None else only
    todo = [item for item in mine if receipts.read(item) is None]
    if todo:
        check()
    with StageProgress(stage.name, len(mine), len(mine) - len(todo), _quiet() if quiet else None) as progress:
        if not todo:
            return

        name = f"unreadable-{stage.name}{'-' + part.replace('/', '-of-') if part else ''}.txt"
        unread = Unread(stage.name, max_unreadable, work / name, part is not None)

        def take(item: int | None, outcome: Outcome, node: str) -> None:
            kind, payload = outcome
            if kind == "done":
                unread.well(payload)
                note = str(payload.get("note", ""))
                progress.advance(1, float(payload.get("audio_seconds", 0.0)), note, node, payload.get("busy"))
            elif kind == "unread":
                unread.failed(*payload)

        workers = _workers(jobs, stage)
        dealing = Dealing(stage, receipts, todo, jobs.attempts, min(workers, len(todo)))
        if jobs.engine == "ray":
            from lst_prep.ray_pool import RayPool

            RayPool(dealing, jobs, quiet).run(take)
        elif workers == 1:
            function = stage.factory(*stage.arguments)
            try:
                item, held = dealing.next()
                while item is not None:
                    take(item, dealing.settle(item, do_item(function, receipts, item, held), "this process"), "")
                    item, held = dealing.next(held)
            finally:
                if isinstance(function, AheadWork):
                    function.close()
        else:
            Pool(dealing).run(take)
        dealing.end()
        unread.end()


def _workers(jobs: Jobs, stage: Stage) -> int:
    """Workers at a time; with a cluster as far as that is known here."""
    if jobs.workers or jobs.engine == "ray":
        return jobs.workers or 1
    return _gpus() if stage.gpu and gpu_is_usable() else usable_cores()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _quiet() -> Any:
    return open(os.devnull, "w")
