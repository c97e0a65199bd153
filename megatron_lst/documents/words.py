"""Text as a sequence of words that is the same whatever its case, punctuation, line breaks and Unicode form.

In scripts that put no spaces between words (Chinese, Japanese, Thai, Khmer...) a "word" is a character with its marks.
Texts are compared by 64-bit hashes of such sequences, see `heldout`.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import regex
import xxhash

UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}"
    r"\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\u30fc\uff70]&&[\p{L}\p{N}]]"
)
"""A character of a script that puts no spaces between words; a set for regular expressions of version 1 of `regex`."""

_WORD = regex.compile(
    rf"(?V1){UNSPACED}[\p{{M}}\uff9e\uff9f\p{{Cf}}]*"
    rf"|[[\p{{L}}\p{{N}}]--{UNSPACED}](?:[[\p{{L}}\p{{N}}\p{{M}}\p{{Cf}}]--{UNSPACED}]|['’ʼ＇]+(?=[\p{{L}}\p{{N}}]))*"
)
"""A word: letters, digits and their marks, with apostrophes between them; or one character of an unspaced script."""

_NOTHING = regex.compile(r"(?V1)['’ʼ＇\p{Cf}]+")
_ACCENTS = regex.compile(r"(?V1)(?<=[\p{Latin}\p{Greek}])[\u0300-\u036f]+")
_OPTIONAL = regex.compile(r"(?V1)[[\p{Hebrew}\p{Arabic}]&&\p{Mn}]|[\u064b-\u065f\u0670\u0640]")
"""Marks that writers leave out: Hebrew points, Arabic vowels, and the Arabic stroke that makes words longer."""

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?:(?=\s)|\Z)|[。！？｡।॥؟۔።។။།．፧༎៕։᠃᠉܀܁܂]+[\"'”’»）」』)\]]*|(?=\n)")

CLASSES = ("word", "Han", "kana", "other unspaced")
WEIGHTS = np.array([6, 5, 3, 2], np.int64)
"""What one word of each class counts: so many bits does it say, roughly, in sixths of a word of a spaced script."""

_HAN = regex.compile(r"[\p{Han}\p{Bopomofo}\p{Yi}]")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}\u30fc]")
_REST = regex.compile(rf"(?V1){UNSPACED}")

_ASCII = {i: chr(i).lower() if chr(i).isalnum() else " " for i in range(128)} | {ord("'"): None}
_TABLE_LIMIT = 1 << 20


def _normalised(word: str, fold: bool) -> list[str]:
    """A match of _WORD in its normal form; compatibility forms such as ½ may become several words.

    Args:
        fold: also drop accents of Latin and Greek letters, and marks that writers leave out.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    if fold and not text.isascii():
        text = unicodedata.normalize("NFD", text)
        text = unicodedata.normalize("NFKC", _OPTIONAL.sub("", _ACCENTS.sub("", text)))
    text = _NOTHING.sub("", text)
    return _WORD.findall(text) if not text.isalnum() or not text.isascii() else [text]


def _code(word: str) -> int:
    """64 bits: a hash of a normalised word, its class in the last two."""
    kind = 0
    if not word[0].isascii():
        kind = 1 if _HAN.match(word) else 2 if _KANA.match(word) else 3 if _REST.match(word) else 0
    return xxhash.xxh3_64_intdigest(word.encode()) & ~3 | kind


class _Codes(dict[str, int | tuple[int, ...]]):
    """Word as found -> its code, or codes where it is several; a cache that starts afresh when it is full."""

    several = False

    def __missing__(self, word: str) -> int | tuple[int, ...]:
        if len(self) >= _TABLE_LIMIT:
            self.clear()
        parts = tuple(map(_code, _normalised(word, fold=True)))
        value = parts[0] if len(parts) == 1 else parts
        self.several = self.several or len(parts) != 1
        self[word] = value
        return value


_CODES = _Codes()


def has_unspaced(text: str) -> bool:
    """Whether some of it is in a script that puts no spaces between words."""
    return not text.isascii() and _REST.search(text) is not None


def word_parts(text: str) -> list[str]:
    """Its words as they stand; in scripts without spaces its characters with their marks."""
    return _WORD.findall(text)


def word_count(text: str) -> float:
    """Its words; a character of a script without spaces counts as a part of one, by WEIGHTS."""
    return float(Words.of(text).weights().sum()) / float(WEIGHTS[0])


def normalise_text(text: str) -> str:
    """Its words with a space between: no case, no punctuation, compatible characters are one.

    Marks stay, since many scripts write vowels and tones with them: texts that differ in those are different.
    """
    if text.isascii():
        return " ".join(text.translate(_ASCII).split())
    return " ".join(part for word in _WORD.findall(text) for part in _normalised(word, fold=False))


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Half-open character spans of the sentences of `text`, in order, without the white space between them."""
    return list(_sentences(text))


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for match in _SENTENCE_END.finditer(text):
        yield from _stripped(text, begin, match.end())
        begin = match.end()
    yield from _stripped(text, begin, len(text))


def _stripped(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[begin:end]
    left = part.lstrip()
    if left:
        begin += len(part) - len(left)
        yield begin, begin + len(left.rstrip())


@dataclass(frozen=True)
class Words:
    """A text's words. T words, S sentences with words.

    Attributes:
        codes: uint64 [T], hashes of the normalised words, their class in the last two bits.
        sentences: int64 [S + 1], the first word of each sentence, then T.
        spans: int64 [S, 2], characters of each sentence.
    """

    codes: np.ndarray
    sentences: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, text: str) -> "Words":
        found: list[int] = []
        first, spans = [0], list[tuple[int, int]]()
        plain = text.isascii()
        for begin, end in _sentences(text):
            part = text[begin:end]
            words = part.translate(_ASCII).split() if plain else _WORD.findall(part)
            codes = list(map(_CODES.__getitem__, words))
            if _CODES.several:
                found += [code for item in codes for code in (item if isinstance(item, tuple) else (item,))]
            else:
                found += codes  # type: ignore[arg-type]
            if len(found) > first[-1]:
                first.append(len(found))
                spans.append((begin, end))
        return cls(np.array(found, np.uint64), np.array(first, np.int64), np.array(spans, np.int64).reshape(-1, 2))

    def weights(self) -> np.ndarray:
        """int64 [T], what each word counts."""
        return WEIGHTS[(self.codes & np.uint64(3)).astype(np.int64)]

    def characters(self, text: str) -> np.ndarray:
        """int64 [T, 2], the characters of each word in the text that this was made of. Slow: for the few hits."""
        spans = []
        for begin, end in self.spans.tolist():
            for match in _WORD.finditer(text, begin, end):
                several = _CODES[match[0]]
                spans += [match.span()] * (len(several) if isinstance(several, tuple) else 1)
        return np.array(spans, np.int64).reshape(-1, 2)
