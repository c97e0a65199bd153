"""Praat's TextGrid files. Long and short form are one: a row of numbers, strings and flags, with text to be skipped."""

import re
from collections.abc import Iterator

from lst_prep.align.imported.labels import Label
from lst_prep.places import AnyPath
from lst_prep.rejection import Rejection

_TOKEN = re.compile(
    r'(?P<string>"(?:[^"]|"")*")|(?P<comment>!.*)|(?P<flag><\w+>)|'
    r"(?P<number>(?<!\S)[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\S))|\S+"
)
_OF_WORDS = re.compile(r"(?:.* - )?words?", re.IGNORECASE)
"""The Montreal aligner calls a tier `words`, or `SPEAKER - words`."""


class _Tokens:
    """The values of a file, in order, with their lines."""

    def __init__(self, text: str, path: AnyPath) -> None:
        self._found, self._path, self.line = self._scan(text), path, 1

    def _scan(self, text: str) -> Iterator[tuple[str, str]]:
        at = 0
        for match in _TOKEN.finditer(text):
            self.line += text.count("\n", at, match.start())
            at = match.start()
            if match.lastgroup in ("string", "flag", "number"):
                yield match.lastgroup, match[0]

    def take(self, kind: str, what: str) -> str:
        """The next value. Raises Rejection: it is of another kind, or there is none."""
        found = next(self._found, None)
        if found is None:
            raise Rejection("bad_alignment", f"{self._path}:{self.line}: breaks off before {what}")
        if found[0] != kind:
            raise Rejection("bad_alignment", f"{self._path}:{self.line}: {found[1][:40]} in place of {what}")
        return found[1][1:-1].replace('""', '"') if kind == "string" else found[1]

    def count(self, what: str) -> int:
        text = self.take("number", what)
        if not text.isdigit():
            raise Rejection("bad_alignment", f"{self._path}:{self.line}: {text} in place of {what}")
        return int(text)


def read_textgrid(text: str, path: AnyPath, tier: str) -> list[Label]:
    """The intervals of the tier of words, silences included.

    Args:
        tier: its name; empty: `words`, or the only tier of intervals.

    Raises:
        Rejection: bad_alignment.
    """
    tokens = _Tokens(text, path)
    if tokens.take("string", "ooTextFile")[:10] != "ooTextFile" or tokens.take("string", "TextGrid") != "TextGrid":
        raise Rejection("bad_alignment", f"{path}:1: not a TextGrid in text form")
    for what in ("xmin", "xmax"):
        tokens.take("number", what)
    tokens.take("flag", "<exists>")
    found: list[tuple[str, list[Label]]] = []
    for _ in range(tokens.count("the number of tiers")):
        kind, name = tokens.take("string", "the class of a tier"), tokens.take("string", "the name of a tier")
        for what in ("xmin", "xmax"):
            tokens.take("number", f"{what} of tier {name!r}")
        labels: list[Label] = []
        for _ in range(tokens.count(f"the number of intervals of tier {name!r}")):
            begin = float(tokens.take("number", "a time"))
            line = tokens.line
            end = begin if kind == "TextTier" else float(tokens.take("number", "a time"))
            labels.append(Label(tokens.take("string", "a label"), begin, end, 0.0, f"{path}:{line}"))
        if kind == "IntervalTier":
            found.append((name, labels))
    return _of_words(found, path, tier)


def _of_words(tiers: list[tuple[str, list[Label]]], path: AnyPath, wanted: str) -> list[Label]:
    names = ", ".join(repr(name) for name, _ in tiers) or "none"
    if wanted:
        chosen = [labels for name, labels in tiers if name == wanted]
    else:
        chosen = [labels for name, labels in tiers if _OF_WORDS.fullmatch(name.strip())]
        chosen = chosen or ([tiers[0][1]] if len(tiers) == 1 else [])
    if len(chosen) != 1:
        which = f"{len(chosen)} tiers {wanted!r}" if wanted else "not one tier of words"
        raise Rejection("bad_alignment", f"{path}: {which}; its tiers of intervals are {names}: name one in align.tier")
    return chosen[0]
