"""Words as they are said, by language: English by its own rules, every other language by those of Unicode and ICU."""

import unicodedata

import regex

from lst_prep.languages.english import english_words
from lst_prep.languages.icu import require_icu, spelled
from lst_prep.languages.tags import ENGLISH, base_language
from lst_prep.rejection import Rejection

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:'+[\p{L}\p{M}\p{N}]+)*")
_APOSTROPHES = regex.compile(r"[’ʼ＇‘]")
_UNSEEN = regex.compile(r"\p{Cf}+")
_NUMBER = regex.compile(r"\d+")
_SEPARATED = regex.compile(r"\d[.,٫٬'’ ]\d")
_SAID = regex.compile(r"[%‰&@#=+€$£¥₽₹§°]")
"""Symbols that are read aloud."""
_DOTTED = {"tr", "az"}
_MOST_DIGITS = 15


def written_words(chunk: str, language: str) -> tuple[str, ...]:
    """Words of a stretch without white space in a form for comparisons: lower case, no punctuation, digits as they are.

    () of punctuation alone.
    """
    return tuple(_WORD.findall(_lower(chunk, language)))


def spoken_words(chunk: str, language: str, numbers: str) -> tuple[str, ...]:
    """Words of a stretch without white space as they are said; () of punctuation alone.

    Args:
        numbers: `spell` says digits in words, `reject` refuses them, `keep` leaves them as they are.

    Raises:
        Rejection: number, language.
        UserError: digits are to be spelled, and ICU is not installed.
    """
    if numbers == "keep":
        return written_words(chunk, language)
    if base_language(language) == ENGLISH:
        return english_words(chunk, numbers)
    if symbol := _SAID.search(chunk):
        raise Rejection("language", f"{chunk!r}: how {symbol[0]!r} is said in {language!r} is not known: write it out")
    lowered = _lower(chunk, language)
    if _NUMBER.search(lowered):
        lowered = _spelled(chunk, lowered, language, numbers)
    return tuple(_WORD.findall(lowered))


def _lower(chunk: str, language: str) -> str:
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", chunk))
    if base_language(language) in _DOTTED:
        text = text.replace("I", "ı").replace("İ", "i")
    return unicodedata.normalize("NFC", _APOSTROPHES.sub("'", text.lower()))


def _spelled(chunk: str, lowered: str, language: str, numbers: str) -> str:
    if numbers == "reject":
        raise Rejection("number", chunk)
    if _SEPARATED.search(lowered) or regex.search(r"\d[\p{L}\p{M}]|[\p{L}\p{M}]\d", lowered):
        raise Rejection("number", f"{chunk!r} can be read in several ways in {language!r}: write it out")
    require_icu(f"digits in a transcript in {language!r} ({chunk!r})", "set align.numbers: reject")

    def words(match: "regex.Match[str]") -> str:
        digits = str(match[0])
        alone = len(digits) > _MOST_DIGITS or (len(digits) > 1 and int(digits[0]) == 0)
        values = [int(digit) for digit in digits] if alone else [int(digits)]
        said = [spelled(value, language) for value in values]
        if not all(said):
            raise Rejection("number", f"{chunk!r}: ICU cannot spell numbers in {language!r}: write it out")
        return f" {' '.join(said)} "

    return str(_NUMBER.sub(words, lowered))
