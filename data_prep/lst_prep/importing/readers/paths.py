"""Which files a source names, and what is said of one that is damaged."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lst_prep.importing.config import ImportSource
from lst_prep.packed import is_damage
from lst_prep.places import AnyPath, path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import LstError, UserError


def source_files(source: ImportSource, suffixes: tuple[str, ...], inputs: Inputs) -> list[AnyPath]:
    """The files of a source with one of some suffixes, sorted. A file that is named is taken whatever its suffix.

    Raises:
        UserError: there is none.
        CannotRead: a folder cannot be listed now.
    """
    path = path_of(source.path)
    if inputs.is_file(path):
        return [path]
    folder = inputs.is_there(path, folder=True)
    found = inputs.walk(path) if folder else inputs.expand(source.path, only_files=True)
    files = [p for p in found if p.name.lower().endswith(suffixes) and not p.name.startswith(".") and _is_file(p)]
    if not files:
        raise UserError(f"source {source.name!r}: no {' or '.join(suffixes)} file at {source.path}")
    return sorted(files)


def _is_file(listed: AnyPath) -> bool:
    """Of what is listed as no folder."""
    return not isinstance(listed, Path) or listed.is_file()


@contextmanager
def damage_named(source: ImportSource, path: object) -> Iterator[None]:
    """What a library says of a broken file, as a sentence that names the file. Raises UserError."""
    try:
        yield
    except (LstError, Rejection):
        raise
    except Exception as error:
        if not isinstance(error, tarfile.TarError) and not is_damage(error):
            raise
        raise UserError(
            f"source {source.name!r}: {path} is damaged or of another format ({str(error).splitlines()[0]}); bring it "
            f"whole, or take it out of the source"
        ) from None
