"""Lines of a text file, whatever packs and encodes it; bytes of no such encoding are found, never replaced."""

import io
from typing import IO, Any

from lst_prep.packed import unpacked
from lst_prep.places import AnyPath
from lst_prep.reading import Inputs
from lst_prep.strings import is_unicode


def open_text(path: AnyPath, inputs: Inputs | None = None, encoding: str = "utf-8") -> IO[str]:
    """Open a text file, unpacked by its suffix; see `as_text`. Raises what `Inputs.open` and `unpacked` raise."""
    return as_text(unpacked((inputs or Inputs()).open(path), path), encoding)


def as_text(file: Any, encoding: str = "utf-8") -> IO[str]:
    """Lines of a binary file. Bytes that are not of the encoding become halves of surrogate pairs: see `utf8_fault`.

    A byte order mark decides between UTF-8 and UTF-16, and is no part of the text. Lines end at \\n, \\r\\n or \\r.
    """
    binary = file if hasattr(file, "peek") else io.BufferedReader(file)
    if encoding == "utf-8" and binary.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return io.TextIOWrapper(binary, encoding="utf-16")
    name = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(binary, encoding=name, errors="surrogateescape")


def utf8_fault(text: str, encoding: str = "utf-8") -> str | None:
    """What is wrong with a text of `open_text`: the first byte that is not of its encoding, and where; None: nothing.

    Halves of surrogate pairs that JSON escapes are none yet.
    """
    if is_unicode(text):
        return None
    at = next(index for index, ch in enumerate(text) if "\ud800" <= ch <= "\udfff")
    before = text[max(at - 20, 0) : at]
    return f"not {encoding}: byte {ord(text[at]) & 0xFF:#x} behind {before!r}"
