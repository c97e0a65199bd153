"""WebDataset's tar files, and folders of .npy: a sample is some files of one name, told apart by their suffixes.

Tar files are read by Python's own `tarfile`, in one pass, without unpacking and without unpickling anything.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from lst_prep.importing.checks import array_in
from lst_prep.importing.config import ImportSource
from lst_prep.importing.readers.paths import damage_named, source_files
from lst_prep.importing.records import OnReject, Part, Reader, Record, mapped, record_of, require_columns
from lst_prep.packed import unpacked
from lst_prep.places import AnyPath, is_under, path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError

_PEEK = 64
_TEXT = ("txt", "text", "lab", "normalized", "trans")


class _Arrays(dict[str, Any]):
    """An .npz: the mapping's name leads to one of its arrays, and no other is read."""


def needed(source: ImportSource, suffix: str) -> list[str]:
    """The mapped names that a file of this suffix has a part in: `json` for json.duration."""
    return [name for name in mapped(source.columns).values() if name == suffix or name.startswith(f"{suffix}.")]


def decode(source: ImportSource, suffix: str, content: bytes) -> Any:
    """What a file of a sample holds.

    Raises:
        Rejection: it is not what its suffix says.
    """
    last = suffix.rpartition(".")[2]
    if last == "npy":
        return array_in(io.BytesIO(content), suffix)
    if last == "npz":
        keys = {name[len(suffix) + 1 :] for name in needed(source, suffix)}
        return _Arrays({key: array_in(io.BytesIO(content), suffix, key) for key in keys if key}) or array_in(
            io.BytesIO(content), suffix
        )
    if last not in ("json", *_TEXT):
        raise Rejection("unreadable_record", f"{suffix}: tokens are read from npy, npz, json or txt")
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text) if last == "json" else text.strip()
    except (ValueError, RecursionError) as error:
        raise Rejection("unreadable_record", f"{suffix}: {error}") from None


class TarReader:
    """Parts are tar files."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        found = []
        for path in source_files(source, (".tar", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2"), inputs):
            there: set[str] = set()
            keys: set[str] = set()
            for key, suffix, _ in self._members(source, path, inputs):
                keys.add(key)
                if len(keys) > _PEEK:
                    break
                there.add(suffix)
            _require_suffixes(source, path, there)
            found.append(Part(str(path), 0, 0, inputs.size(path)))
        return found

    def _members(self, source: ImportSource, path: AnyPath, inputs: Inputs) -> Iterator[tuple[str, str, IO[bytes]]]:
        """(sample, suffix, content) of each file of a tar, in order."""
        with damage_named(source, path), inputs.open(path) as raw:
            if path.suffix.lower() == ".tar" and not _ends(raw):
                raise tarfile.ReadError("its end is missing")
            with unpacked(raw, path) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is not None and suffix:
                        yield (f"{folder}/{stem}" if folder else stem).removeprefix("./"), suffix.lower(), content

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        path = path_of(part.path)
        key, value, fault = "", dict[str, Any](), None

        def finished() -> Iterator[Record]:
            where = f"{path}: sample {key!r}"
            if fault is not None:
                on_reject(where, fault)
            elif value:
                yield record_of(where, value, source.columns, id=key)

        for sample, suffix, content in self._members(source, path, inputs):
            if sample != key:
                yield from finished()
                key, value, fault = sample, {}, None
            if not needed(source, suffix):
                continue
            if suffix in value:
                raise UserError(f"source {source.name!r}: {path} holds {sample}.{suffix} twice")
            try:
                value[suffix] = decode(source, suffix, content.read())
            except Rejection as rejection:
                fault = rejection
        yield from finished()


def _ends(file: BinaryIO) -> bool:
    """Whether a plain tar has its end mark: one that was cut between two files reads as if it were whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1024))
    marked = size >= 1024 and not any(file.read())
    file.seek(0)
    return marked


def _require_suffixes(source: ImportSource, path: object, there: set[str]) -> None:
    """As `require_columns`, for suffixes that may have dots themselves."""
    names = there | {name for suffix in there for name in needed(source, suffix)}
    try:
        require_columns(source, path, names)
    except UserError:
        require_columns(source, path, there)


class FolderReader:
    """Parts are samples: an .npy or .npz (`columns.tokens` names the suffix) and what stands beside it."""

    def parts(self, source: ImportSource, inputs: Inputs) -> list[Part]:
        suffix = self._suffix(source)
        files = source_files(source, (f".{suffix}",), inputs)
        for path in files[:1]:
            stem = f"{self._stem(path, suffix)}."
            beside = {name.removeprefix(stem) for name, _ in inputs.entries(path.parent) if name.startswith(stem)}
            _require_suffixes(source, path, {name.lower() for name in beside})
        return [Part(str(path), 0, 0, inputs.size(path)) for path in files]

    @staticmethod
    def _suffix(source: ImportSource) -> str:
        name = source.columns.tokens
        for last in (".npy", ".npz"):
            head, found, _ = f".{name}.".partition(f"{last}.")
            if found:
                return (head + last)[1:]
        raise UserError(
            f"source {source.name!r}: columns.tokens={name}: of format npy it is the suffix of the files, such as npy, "
            f"codes.npy or npz.codes"
        )

    @staticmethod
    def _stem(path: AnyPath, suffix: str) -> str:
        return path.name[: -len(suffix) - 1]

    def read(self, source: ImportSource, part: Part, inputs: Inputs, on_reject: OnReject) -> Iterator[Record]:
        path, main = path_of(part.path), self._suffix(source)
        stem, root = self._stem(path, main), path_of(source.path)
        value = dict[str, Any]()
        try:
            suffixes = {main}
            for name in mapped(source.columns).values():
                keys = name.split(".")
                suffixes |= {".".join(keys[:n]) for n in range(1, len(keys) + 1)}
            for suffix in suffixes:
                beside = path.with_name(f"{stem}.{suffix}")
                if suffix == main or inputs.is_file(beside):
                    value[suffix] = decode(source, suffix, inputs.read_bytes(beside))
        except Rejection as rejection:
            on_reject(part.path, rejection)
            return
        inside = path.parent.parts[len(root.parts) :] if is_under(path.parent, root) else ()
        yield record_of(part.path, value, source.columns, id="/".join((*inside, stem)))


READERS: dict[str, Reader] = {"webdataset": TarReader(), "npy": FolderReader()}
