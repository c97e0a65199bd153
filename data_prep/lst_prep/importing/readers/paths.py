"""Which files a source names, and what is said of one that is damaged."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lst_prep.importing.config import ImportSource
from lst_prep.packed import is_damage
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import LstError, UserError


def source_files(source: ImportSource, suffixes: tuple[str, ...], inputs: Inputs) -> list[Path]:
    """The files of a source with one of some suffixes, sorted. A file that is named is taken whatever its suffix.

    Raises:
        UserError: there is none.
        CannotRead: a folder cannot be listed now.
    """
    path = Path(source.path)
    if path.is_file():
        return [path]
    found = inputs.walk(path) if path.is_dir() else inputs.expand(source.path)
    files = [p for p in found if p.name.lower().endswith(suffixes) and not p.name.startswith(".") and p.is_file()]
    if not files:
        raise UserError(f"source {source.name!r}: no {' or '.join(suffixes)} file at {source.path}")
    return sorted(files)


def size_of(path: Path, inputs: Inputs) -> int:
    return inputs.retry(path, lambda: os.stat(path).st_size)


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
