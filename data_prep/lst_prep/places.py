"""Where inputs lie: files of this machine, or objects in a store, such as s3://bucket/folder/file.

`pathlib` makes `s3:/bucket` of an address. So every text that names an input becomes a path here, and an address a
`StorePath`, which is no `os.PathLike`: what would take it for a local path fails at once.
"""

import os
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError
from megatron_lst.values import STORES


@dataclass(frozen=True, order=True)
class StorePath:
    """An object, or what the names of several begin with, with the part of `pathlib` that is needed.

    Attributes:
        scheme: one of STORES.
        inside: bucket and key.
    """

    scheme: str
    inside: PurePosixPath

    @classmethod
    def of(cls, address: str) -> "StorePath":
        """Raises UserError: of no store that is known, or without a bucket."""
        scheme, _, rest = address.partition("://")
        if scheme not in STORES:
            known = " and ".join(f"{name}://" for name in STORES)
            raise UserError(f"{address}: no such address is read here: {known} are, and local paths")
        inside = PurePosixPath(posixpath.normpath(rest.lstrip("/") or "."))
        if not inside.parts or inside.parts[0] == "..":
            raise UserError(f"{address}: names no bucket: {scheme}://bucket/key")
        return cls(scheme, inside)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.inside}"

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath.of(f"{self}/{name}")

    @property
    def bucket(self) -> str:
        return self.inside.parts[0]

    @property
    def parts(self) -> tuple[str, ...]:
        return f"{self.scheme}:", *self.inside.parts

    @property
    def name(self) -> str:
        return self.inside.name

    @property
    def stem(self) -> str:
        return self.inside.stem

    @property
    def suffix(self) -> str:
        return self.inside.suffix

    @property
    def suffixes(self) -> list[str]:
        return self.inside.suffixes

    @property
    def parent(self) -> "StorePath":
        return self if len(self.inside.parts) == 1 else replace(self, inside=self.inside.parent)

    def with_name(self, name: str) -> "StorePath":
        return replace(self, inside=self.inside.with_name(name))


AnyPath = Path | StorePath
SamePath = TypeVar("SamePath", bound=AnyPath)
"""What is found in a folder is of the kind of the folder."""


def is_address(name: object) -> bool:
    """Whether a text names something in a store (or behind a protocol), not on this machine."""
    return "://" in str(name)


def path_of(name: str | AnyPath) -> AnyPath:
    """The file or object that a text names. Raises UserError: an address of no store that is known."""
    if isinstance(name, StorePath):
        return name
    if re.match(rf"({'|'.join(STORES)}):/(?!/)", str(name)):
        raise UserError(f"{name}: an address of a store has two slashes, {str(name).replace(':/', '://', 1)}")
    return StorePath.of(name) if isinstance(name, str) and is_address(name) else Path(name)


def whole(name: str | AnyPath) -> str:
    """A path that means the same in every folder. Names that are no paths may be given, too."""
    return str(name) if is_address(name) else os.path.abspath(str(name))


def joined(folder: AnyPath, name: str) -> AnyPath:
    """What a file in `folder` names: relative to it, or whole. Raises UserError as `path_of`."""
    if is_address(name) or os.path.isabs(name):
        return path_of(name)
    return folder / name


def is_under(path: AnyPath, folder: AnyPath) -> bool:
    """Whether a path lies in a folder, as both are written."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
    return path.parts[: len(folder.parts)] == folder.parts


def beside(folder: AnyPath, name: str) -> AnyPath:
    """A file that a record names: under the folder of the record's file, or named whole.

    Raises:
        Rejection: outside_corpus.
    """
    try:
        path = joined(folder, name)
    except UserError as error:
        raise Rejection("outside_corpus", str(error)) from None
    if not is_address(name) and not os.path.isabs(name):
        here = (
            (path.resolve(), folder.resolve())
            if isinstance(path, Path) and isinstance(folder, Path)
            else (path, folder)
        )
        if not is_under(*here):
            raise Rejection("outside_corpus", name)
    return path
