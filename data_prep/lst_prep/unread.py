"""Items of a stage that could not be done because their inputs cannot be read now."""

import errno
import os
from pathlib import Path
from typing import Any

from lst_prep.reading import listed
from megatron_lst.errors import LstError
from megatron_lst.files import write_bytes

_ENOUGH = 100
"""Files that a stage tries before the share of the unreadable ones stops it."""


class JobFault(LstError):
    """Items that could not be done: their workers died again and again, or their inputs cannot be read now."""

    exit_code = 4


class MissingInputs(JobFault):
    """Files that are named and not there, while all others can be read."""

    exit_code = 2


class Unread:
    """Keeps account of the inputs of a stage that cannot be read, and stops it when they are too many.

    Args:
        stage: its name.
        most: the largest share of the files tried that may fail, once they are `_ENOUGH`.
        log: where the names go, one a line, for `lst prep give-up --list`; removed where there are none.
        sliced: a task of an array, which is started again: a file that is not there may be away with its store.
    """

    def __init__(self, stage: str, most: float, log: Path, sliced: bool = False) -> None:
        self._sliced = sliced
        self._stage, self._most, self._log = stage, most, log
        self._items, self._tried = 0, 0
        self._files: dict[str, str] = {}

    def well(self, result: dict[str, Any]) -> None:
        """An item is done."""
        self._tried += int(result.get("files_read", 1))

    def failed(self, files: dict[str, str], tried: int) -> None:
        """An item cannot be done now. Raises JobFault when the share is too large."""
        self._files |= files
        self._items += 1
        self._tried += max(tried, len(files))
        if self._tried >= _ENOUGH and len(self._files) > self._most * self._tried:
            self._raise(
                f"stage {self._stage} stops: {len(self._files):,} of the {self._tried:,} files that it tried cannot be "
                f"read (reading.max_unreadable: {self._most:g})"
            )

    def end(self) -> None:
        """Raises JobFault when an item failed."""
        self._log.unlink(missing_ok=True)
        if self._items:
            self._raise(f"stage {self._stage}: {self._items:,} items could not be done; everything else is")

    def _raise(self, what: str) -> None:
        write_bytes(self._log, "".join(f"{path}\n" for path in self._files).encode(errors="backslashreplace"))
        said = f"{what}. {listed(self._files)}. All are named in {self._log}."
        if not self._sliced and set(self._files.values()) == {os.strerror(errno.ENOENT)}:
            raise MissingInputs(
                f"{said} Put them there and run the same command again (relative paths count from the manifest's "
                f"folder); what is gone for good: `lst prep give-up`"
            )
        raise JobFault(
            f"{said} Run the same command again when they can be read; what is gone for good: `lst prep give-up`"
        )
