"""What options of several commands have in common. Every number on the command line has a range."""

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_lst.errors import UserError

JSON = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else goes to stderr")]


def finite(value: float | None) -> float | None:
    """A callback: nan lies in every range that `min` and `max` can say, and inf in those without an end."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number to compute with")
    return value


def on_disk(value: Path | list[Path] | None) -> Any:
    """A callback: an address of a store is no path, and `pathlib` would make a local one of it."""
    for path in value if isinstance(value, list) else [value]:
        if path is not None and re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            raise UserError(f"{str(path).replace(':/', '://', 1)}: an address in a store; here a local path is needed")
    return value


@contextlib.contextmanager
def answering(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Within it, with --json, every print goes to stderr; what the given function was told is the answer on stdout.

    Without --json nothing changes. Where the command fails before it has an answer, stdout stays empty; an answer that
    was given before stands there, too: of a verification that found damage, for instance.
    """
    given: list[Any] = []
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            yield given.append
    finally:
        if as_json and given:
            print(json.dumps(plain(given[-1])))


def plain(value: Any) -> Any:
    """What JSON holds: NaN and infinity are null, paths are text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
