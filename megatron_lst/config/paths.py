"""Which keys are paths, and from where a relative one counts: the folder of the file that names it.

What the command line names, and what nobody named (a default), counts from the current folder. URLs, names of what
comes with the project and names on a model hub stay as they are.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from megatron_lst.values import Place

T = TypeVar("T")


class Spot(str):
    """Where a value was written, as messages say it.

    Attributes:
        folder: from which its relative paths count; None: the current folder.
    """

    folder: str | None

    def __new__(cls, text: str, folder: str | None = None) -> "Spot":
        spot = super().__new__(cls, text)
        spot.folder = folder
        return spot


class WrittenPath(str):
    """A path as it is used, which knows how it was written.

    Attributes:
        written: the text in the file.
        place: the file and the line.
    """

    written: str
    place: str

    def __new__(cls, path: str, written: str = "", place: str = "") -> "WrittenPath":
        made = super().__new__(cls, path)
        made.written, made.place = written, place
        return made


def told(path: str) -> str:
    """A path for a message: as it is used, and as it was written where that is another text."""
    if not isinstance(path, WrittenPath):
        return str(path)
    return f"{path} (written {path.written!r} in {path.place}, whose folder it counts from)"


def placed(path: str, folder: str | os.PathLike[str]) -> str:
    """A relative path that counts from `folder`, for use from the current folder. `..` goes as the file system goes,
    also behind a symbolic link."""
    joined = os.path.join(folder, path)
    short = os.path.normpath(joined)
    return short if os.path.realpath(short) == os.path.realpath(joined) else joined


def from_file(rule: Place, written: str, value: str, spot: str) -> str:
    """The path of a key as it is used.

    Args:
        written: as the file has it.
        value: the same with `~` and `$NAME` filled in.
        spot: where it stands.
    """
    folder = spot.folder if isinstance(spot, Spot) else None
    if folder is None or os.path.isabs(value) or not is_local(rule, value, folder):
        return value
    return WrittenPath(placed(value, folder), written, str(spot))


def is_local(rule: Place, value: str, folder: str | os.PathLike[str] = "") -> bool:
    """Whether a value of a key is a file or folder of this machine.

    Args:
        folder: from which it counts. A name such as `owner/model` of a key that also takes names on a model hub is a
            path where there is something of that name.
    """
    if not value or "://" in value or value in rule.names:
        return False
    named = rule.hub and not value.startswith((".", "/")) and value.count("/") <= 1
    return not named or os.path.exists(os.path.join(folder, value))


def with_paths(config: T, change: Callable[[str], str]) -> T:
    """The same configuration with every local path changed."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    changed = {name: _with_paths(hints[name], value, change) for name, value in fields.items()}
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def _with_paths(kind: Any, value: Any, change: Callable[[str], str]) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if value is None:
        return None
    if origin is Annotated:
        rule = next((rule for rule in args[1:] if isinstance(rule, Place)), None)
        return change(value) if rule is not None and is_local(rule, value) else value
    if origin in (typing.Union, types.UnionType):
        return _with_paths(next(inner for inner in args if inner is not type(None)), value, change)
    if origin is tuple:
        return tuple(_with_paths(args[0], item, change) for item in value)
    if origin is dict:
        return {key: _with_paths(args[1], item, change) for key, item in value.items()}
    return with_paths(value, change) if dataclasses.is_dataclass(kind) else value


def absolute(config: T) -> T:
    """The same configuration with absolute paths: it means the same wherever it is read."""
    return with_paths(config, _absolute)


def _absolute(path: str) -> str:
    found = path if os.path.isabs(path) else placed(path, os.getcwd())
    return WrittenPath(found, path.written, path.place) if isinstance(path, WrittenPath) else found


def is_runs_own(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether a file is the `config.yaml` that a run keeps in its folder. Those of earlier versions hold paths that
    count from the folder in which the run was started."""
    folder = (values.get("run") or {}).get("dir") if isinstance(values.get("run"), Mapping) else None
    return (
        path.name == "config.yaml"
        and isinstance(folder, str)
        and os.path.realpath(folder) == os.path.realpath(path.parent)
    )
