"""Transcripts: from the original text to spoken words, with the way back.

A *word* of this project is what white space separates, punctuation included, or in a script without spaces what the
segmenter says, with the punctuation behind it.  The text pieces of the words are exactly those of the text (see
`tokenizer`).  One word may be several spoken words (`well-known`, `1611`) or none (`--`); one without any is joined to
the word before it, or to the first.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lst_prep.config import PrepConfig
from lst_prep.languages import ENGLISH, base_language, segmenter, spoken_words
from lst_prep.manifest import Entry
from lst_prep.rejection import Rejection
from megatron_lst.documents.words import has_unspaced, word_count

_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|\d+:\d+:\d+|https?://|\bwww\.")


@dataclass(frozen=True)
class Word:
    """One word of a transcript.

    Attributes:
        begin, end: half-open character span in the original text.
        spoken: lower-case spoken words, letters and marks of the language and apostrophes; at least one.
    """

    begin: int
    end: int
    spoken: tuple[str, ...]


def check_rate(words: list[Word], seconds: float, most: float) -> None:
    """Raises Rejection words_too_fast when more than `most` spoken words a second would have to be said.

    In a script without spaces a character counts as a part of a word, whatever the segmenter says.
    """
    spoken = sum(1 if part.isascii() else word_count(part) for word in words for part in word.spoken)
    if spoken > most * seconds + 1:
        raise Rejection("words_too_fast", f"{spoken:g} words in {seconds:.1f} s")


def words_of(entry: Entry, config: PrepConfig) -> list[Word]:
    """Words of a piece's transcript, as the aligner of its language wants them. See `normalise`."""
    language = config.language_of(entry.source, entry.language)
    align = config.align.of(language)
    numbers = "keep" if align.takes_text else align.numbers
    return normalise(entry.text, numbers, language, align.segmenter)


def normalise(text: str, numbers: str = "spell", language: str = ENGLISH, breaks: str = "icu") -> list[Word]:
    """Words of a transcript, in order, with their character spans in `text`.

    Args:
        text: the original transcript.
        numbers: `spell` writes digits out in words, `reject` refuses them, `keep` leaves them.
        language: a tag.
        breaks: name of a segmenter, for scripts without spaces.

    Raises:
        Rejection: markup_in_transcript, language, number or empty_transcript.
        UserError: the segmenter, or what spells numbers, is not installed.
    """
    markup = _MARKUP.search(text)
    if markup:
        raise Rejection("markup_in_transcript", markup[0])
    words: list[Word] = []
    leading: int | None = None
    for begin, end in _chunks(text, language, breaks, numbers):
        spoken = spoken_words(text[begin:end], language, numbers)
        if spoken:
            words.append(Word(begin if leading is None else leading, end, spoken))
            leading = None
        elif words:
            words[-1] = Word(words[-1].begin, end, words[-1].spoken)
        else:
            leading = begin if leading is None else leading
    if not words:
        raise Rejection("empty_transcript")
    return words


def _chunks(text: str, language: str, breaks: str, numbers: str) -> Iterator[tuple[int, int]]:
    """Half-open spans of what may be a word. The segmenter is asked for only where a script has no spaces, and not for
    English spelled out, which has no letters of such a script."""
    spaced = numbers != "keep" and base_language(language) == ENGLISH
    for match in re.finditer(r"\S+", text):
        if spaced or not has_unspaced(match[0]):
            yield match.span()
            continue
        for begin, end in segmenter(breaks).spans(match[0], language):
            yield match.start() + begin, match.start() + end
