"""Documents that are well formed and cannot be right: what a wrong preparation leaves in shards, and `verify` finds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from lst_prep.tokenizer import Tokenizer, load_tokenizer
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import SPEECH, Document
from megatron_lst.documents.words import normalise_text, word_count
from megatron_lst.errors import LstError
from megatron_lst.files import read_json

_LETTERS_A_PIECE = 16
_LONG = 300
"""Letters of a text from which on its letters a piece mean something."""
_LEAST_WORDS_A_SECOND, _MOST_WORDS_A_SECOND = 0.6, 12.0
_LONG_SECONDS = 30.0
_REPEATED = 50
"""Frames of sound that are not alike by chance."""
_TAIL = 16


def set_tokenizer(out: Path, info: TokenizerInfo) -> Tokenizer | None:
    """The tokenizer that a preparation's folder names, where it is still there and the same; else None."""
    there = read_json(out / "tokenizer.json")
    try:
        tokenizer = load_tokenizer(str((there or {}).get("spec", "")))
    except LstError:
        return None
    return tokenizer if tokenizer.info.fingerprint == info.fingerprint else None


def doubts(
    document: Document, info: TokenizerInfo, tokenizer: Tokenizer | None = None, rate: float | None = 25.0
) -> list[str]:
    """What cannot be right about one document, one message each.

    Args:
        tokenizer: what made its pieces, where it is at hand.
        rate: frames a second; None: units are none, as in sets for the BPE baseline.
    """
    if len(document.turn_spans):
        found = _turns(document, tokenizer)
        return [f"document {document.id!r} of source {document.source!r}: {what}" for what in found]
    found = list(_pieces(document, info, tokenizer))
    if document.has_speech and len(document.token_ids) and rate:
        found += _sound(document, rate)
    return [f"document {document.id!r} of source {document.source!r}: {what}" for what in found]


def _pieces(document: Document, info: TokenizerInfo, tokenizer: Tokenizer | None) -> list[str]:
    ids, text = document.token_ids, document.text
    found = []
    if len(special := np.flatnonzero((ids == info.bos) | (ids == info.eos))):
        found.append(f"BOS or EOS at place {special[0]} inside its {len(ids)} pieces")
    words = len(text.split())
    if len(ids) > len(text.encode()) + 2 * words + 8:
        found.append(f"{len(ids)} pieces for {len(text)} characters: padded?")
    letters = sum(map(str.isalnum, text))
    if letters > _LONG and letters > _LETTERS_A_PIECE * len(ids):
        found.append(f"{len(ids)} pieces for {len(text)} characters: truncated?")
    elif tokenizer is not None and len(ids) and letters:
        end = _letters(tokenizer.decode(ids[-_TAIL:].tolist()))[-8:]
        if end and not _letters(text[-400:]).endswith(end):
            found.append(f"its pieces end in {end!r}, its text in {text[-20:]!r}")
    return found


def _turns(document: Document, tokenizer: Tokenizer | None) -> list[str]:
    """Text of a conversation is encoded stretch by stretch, special tokens included."""
    if tokenizer is None:
        return []
    for (kind, begin, end), (first, last) in zip(document.turn_spans, document.turn_chars, strict=True):
        text, ids = document.text[first:last], document.token_ids[begin:end].tolist()
        if kind != SPEECH and tokenizer.encode_marked(text) != ids:
            return [f"pieces [{begin}, {end}) are not those of their text {text[:60]!r}"]
    return []


def _letters(text: str) -> str:
    return normalise_text(text).replace(" ", "").rpartition("\ufffd")[2]


def _sound(document: Document, rate: float) -> list[str]:
    ids, seconds = document.speech_ids, len(document.speech_ids) / rate
    words = word_count(document.text)
    found = []
    if words > _MOST_WORDS_A_SECOND * seconds + 2:
        found.append(f"{words:.0f} words in {seconds:.1f} s of sound")
    if seconds > _LONG_SECONDS and words < _LEAST_WORDS_A_SECOND * seconds:
        found.append(f"{words:.0f} words in {seconds:.1f} s of sound: is it longer than what is spoken?")
    half = len(ids) // 2
    if half >= _REPEATED and len(ids) % 2 == 0 and np.array_equal(ids[:half], ids[half:]):
        found.append(f"the same {half / rate:.1f} s of sound twice: longer than its audio")
    return found


@dataclass(frozen=True)
class Sounds:
    """Hashes of the sound and the text of documents, to find one sound that has several texts.

    Attributes:
        sound, text: uint64, one a document; sound 0: too little to tell, or a conversation, which may stand in several
            styles.
    """

    sound: np.ndarray
    text: np.ndarray

    @classmethod
    def of(cls, documents: list[Document]) -> "Sounds":
        sound = [
            xxhash.xxh3_64_intdigest(d.speech_ids.tobytes())
            if len(d.speech_ids) >= _REPEATED and d.text and not len(d.turn_spans)
            else 0
            for d in documents
        ]
        text = [xxhash.xxh3_64_intdigest(normalise_text(d.text).encode()) for d in documents]
        return cls(np.array(sound, np.uint64), np.array(text, np.uint64))


def shared_sounds(parts: list[Sounds]) -> np.ndarray:
    """int64 [n, 2], documents (by their number in the set) of equal sound and different text: each beside the first."""
    if not parts:
        return np.zeros((0, 2), np.int64)
    sound, text = (np.concatenate([getattr(part, name) for part in parts]) for name in ("sound", "text"))
    order = np.argsort(sound, kind="stable")
    first = np.flatnonzero(np.concatenate([[True], sound[order][1:] != sound[order][:-1]]))
    leader = order[np.repeat(first, np.diff(np.append(first, len(order))))]
    wrong = (sound[order] != 0) & (text[order] != text[leader])
    return np.stack([leader[wrong], order[wrong]], axis=1)
