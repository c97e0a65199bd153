"""Which checkpoints stay. Only what the run wrote itself is ever removed, and each removal is told."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from megatron_lst.errors import UserError
from megatron_lst.files import write_text
from megatron_lst.training.checkpoint.folders import (
    KEEP,
    MANIFEST,
    Checkpoint,
    checkpoint_root,
    complete_checkpoints,
    find_checkpoint,
    note_written,
    written_steps,
)

_LEFTOVER = re.compile(r"step-(\d{8}|[1-9]\d{8,})\.(tmp|removed)")


def keep(run: Path, step: int) -> Checkpoint:
    """Have retention leave the checkpoint of `step` alone, also in a run that is training.

    Raises:
        UserError: there is no complete checkpoint of that step (any more).
    """
    found = find_checkpoint(run, step)
    try:
        write_text(found.path / KEEP, time.strftime("kept since %Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))
    except OSError as error:
        raise UserError(f"{found.path / KEEP}: cannot be written: {error.strerror}") from None
    if not (found.path / MANIFEST).is_file():
        shutil.rmtree(found.path, ignore_errors=True)  # the marker made the folder again
        raise UserError(f"{found.path} was removed by the run in this moment (checkpoint.keep)")
    return found


def release(run: Path, step: int) -> Checkpoint:
    """Undo `keep`.

    Raises:
        UserError: there is no complete checkpoint of that step.
    """
    found = find_checkpoint(run, step)
    (found.path / KEEP).unlink(missing_ok=True)
    return found


def best_checkpoint(run: Path) -> Checkpoint | None:
    """The one with the least held-out loss, the newest of equals; None where none was measured."""
    measured = [(loss, -c.step, c) for c in complete_checkpoints(run) if (loss := c.heldout_loss()) is not None]
    return min(measured)[2] if measured else None


def retain(
    run: Path, keep: int, *, keep_best: bool = False, tell: Callable[[str], None] = lambda sentence: None
) -> list[Checkpoint]:
    """Remove what the run wrote itself and no longer needs: all but the newest `keep` complete checkpoints (0 keeps
    all), those that are kept for good and, if asked, the best; and what unfinished saves left. A removal that fails is
    told as well: the newest checkpoint is complete, whatever becomes of old ones.

    Returns:
        The checkpoints that are gone.
    """
    found, written = complete_checkpoints(run), written_steps(run)
    best = best_checkpoint(run) if keep_best else None
    removed = []
    for old in found[:-keep] if keep else []:
        if old.step not in written or old.kept or old == best:
            continue
        if _remove(old.path, f"checkpoint.keep={keep}", tell):
            removed.append(old)
    if removed:
        try:
            note_written(run, written - {c.step for c in removed})
        except OSError as error:
            tell(f"{error.filename}: not written ({error.strerror})")
    newest = found[-1].step if found else -1
    for path in checkpoint_root(run).glob("step-*") if found else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match and int(match[1]) <= newest and match[2] == "tmp":
            _remove(path, "an unfinished save", tell)
        elif match and match[2] == "removed":
            _remove(path, "what an interrupted removal left", tell)
    return removed


def _remove(folder: Path, why: str, tell: Callable[[str], None]) -> bool:
    """Rename, then delete: a kill in the middle leaves nothing that looks complete, and a reader fails at once."""
    going = folder if folder.suffix else folder.with_name(f"{folder.name}.removed")
    try:
        if going != folder:
            folder.rename(going)
        if (going / KEEP).exists():  # kept since it was looked at
            going.rename(folder)
            return False
        shutil.rmtree(going)
    except OSError as error:
        tell(f"{folder.name} could not be removed: {error}")
        return False
    tell(f"{folder.name} removed: {why}")
    return True
