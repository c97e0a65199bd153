"""Words of text without spaces: by ICU, by a function that the user names, or one a character."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import regex

from lst_prep.languages.icu import icu_version, require_icu, word_breaks
from megatron_lst.documents.words import UNSPACED, has_unspaced
from megatron_lst.errors import UserError

_CHARACTER = regex.compile(rf"(?V1){UNSPACED}[\p{{M}}\uff9e\uff9f\p{{Cf}}]*|(?:(?!{UNSPACED}).)+", regex.DOTALL)


@dataclass(frozen=True)
class Segmenter:
    """Where words end in a stretch of text without white space.

    Attributes:
        fingerprint: what the words depend on.
    """

    fingerprint: str
    _breaks: Callable[[str, str], list[tuple[int, int]]]

    def spans(self, chunk: str, language: str) -> list[tuple[int, int]]:
        """Half-open spans that cover `chunk`, one a word or mark; a single one where all scripts in it have spaces."""
        if not has_unspaced(chunk):
            return [(0, len(chunk))]
        return self._breaks(chunk, language)


@lru_cache(maxsize=8)
def segmenter(name: str) -> Segmenter:
    """`icu`, `characters`, or `package.module:function`, which takes a text and gives its words in order.

    Raises:
        UserError: ICU is not installed, or there is no such function.
    """
    if name == "icu":
        require_icu("align.segmenter icu (text in a script without spaces)", "set align.segmenter: characters")
        return Segmenter(icu_version(), word_breaks)
    if name == "characters":
        return Segmenter(name, lambda chunk, _: [match.span() for match in _CHARACTER.finditer(chunk)])
    return Segmenter(name, _named(name))


def _named(name: str) -> Callable[[str, str], list[tuple[int, int]]]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"align.segmenter {name!r}: is not icu, characters, or a function named package.module:function ({error})"
        ) from None

    def breaks(chunk: str, _: str) -> list[tuple[int, int]]:
        spans, at = [], 0
        for word in function(chunk):
            if not word or not chunk.startswith(word, at):
                raise UserError(
                    f"align.segmenter {name}: its words are not those of the text, in order: {word!r} for "
                    f"{chunk[at : at + 20]!r}"
                )
            spans.append((at, at + len(word)))
            at += len(word)
        if at != len(chunk):
            raise UserError(f"align.segmenter {name}: its words leave out {chunk[at:][:20]!r}")
        return spans

    return breaks
