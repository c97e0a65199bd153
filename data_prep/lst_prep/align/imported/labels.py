"""One word of an alignment file, and how such a file becomes text."""

import codecs
from dataclasses import dataclass

from lst_prep.places import AnyPath
from lst_prep.rejection import Rejection


@dataclass(frozen=True)
class Label:
    """One word with its time, as a file has it.

    Attributes:
        text: the word, or what stands for silence or noise.
        begin, end: seconds; None: the file gives none for this word.
        score: the aligner's confidence, 0 where the file has none.
        where: `FILE:LINE` or, in JSON, `FILE: segments[2].words[5]`.
    """

    text: str
    begin: float | None
    end: float | None
    score: float
    where: str


def decoded(data: bytes, path: AnyPath) -> str:
    """UTF-8, or UTF-16 with its byte order mark. Raises Rejection, with the line, for other bytes."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Rejection("bad_alignment", f"{path}:{line}: not {encoding.removesuffix('-sig').upper()}") from None


def number(text: str, what: str, where: str) -> float:
    """Raises Rejection: it is no finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1e9 < value < 1e9:
        raise Rejection("bad_alignment", f"{where}: {what} is {text[:40]!r}, not a number of seconds")
    return value
