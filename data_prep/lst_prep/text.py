"""Text as documents: what counts as the same text, and cutting into chunks of pieces."""

from collections.abc import Iterator

import numpy as np
import xxhash

from lst_prep.tokenizer import Tokenizer
from megatron_lst.documents.heldout import normalise_text, sentence_spans


def document_hash(text: str) -> int:
    """64 bits that are equal for texts equal up to case, punctuation and white space."""
    words = normalise_text(text)  # none in a text of emoji alone: that is itself
    return int(xxhash.xxh3_64_intdigest((words or f"no words: {text.strip()}").encode()))


def chunk(text: str, tokenizer: Tokenizer, max_pieces: int) -> Iterator[tuple[str, np.ndarray]]:
    """Cut a text into (text, token_ids int32) of at most `max_pieces`, at sentence or line ends where there are any.

    A sentence that is longer by itself is cut between words; a word that is longer, between characters.
    """
    ids = tokenizer.encode(text)
    if not ids:
        return
    if len(ids) <= max_pieces:
        yield text, np.array(ids, np.int32)
        return
    spans = sentence_spans(text)
    if len(spans) < 2:
        spans = _word_spans(text)
    if len(spans) < 2:
        middle = len(text) // 2
        yield from chunk(text[:middle], tokenizer, max_pieces)
        yield from chunk(text[middle:], tokenizer, max_pieces)
        return
    begin, used = 0, 0
    for index in range(len(spans)):
        stop = spans[index + 1][0] if index + 1 < len(spans) else len(text)
        size = len(tokenizer.encode(text[spans[index][0] if index else 0 : stop]))
        if used and used + size > max_pieces:
            yield from chunk(text[begin : spans[index - 1][1]], tokenizer, max_pieces)
            begin, used = spans[index][0], 0
        used += size
    if begin == 0:  # the parts fit by their own count, the whole does not: cut anyway
        begin = spans[len(spans) // 2][0]
        yield from chunk(text[:begin].rstrip(), tokenizer, max_pieces)
    yield from chunk(text[begin:].rstrip(), tokenizer, max_pieces)


def _word_spans(text: str) -> list[tuple[int, int]]:
    spans, at = [], 0
    for word in text.split():
        begin = text.index(word, at)
        at = begin + len(word)
        spans.append((begin, at))
    return spans
