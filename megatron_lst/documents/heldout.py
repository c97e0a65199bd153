"""The one place that keeps training, validation and evaluation text apart.

Sentences are compared by the hash of their normalised text: case, punctuation, accents and white space do not count.
Every source is checked with the same `HeldOut` set, and `assert_disjoint` is what data preparation and tests call
at the end.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import write_text

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+")
_NOT_LETTERS = re.compile(r"[^\w]+", re.UNICODE)


def normalise_text(text: str) -> str:
    """Lower case, no accents, every run of anything but letters and digits one space."""
    bare = text.casefold()
    if not bare.isascii():
        bare = "".join(ch for ch in unicodedata.normalize("NFKD", bare) if not unicodedata.combining(ch))
    return _NOT_LETTERS.sub(" ", bare.replace("'", "").replace("’", "")).strip()


def text_hash(text: str) -> str:
    """32 hex digits that are equal for texts equal up to `normalise_text`."""
    return _digest(normalise_text(text))


def _digest(normalised: str) -> str:
    return xxhash.xxh3_128_hexdigest(normalised.encode())


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Half-open character spans of the sentences of `text`, in order, without the white space between them."""
    return [(begin, end) for begin, end, _ in _sentences(text)]


def _sentences(text: str) -> Iterator[tuple[int, int, str]]:
    """(begin, end, normalised text) of each sentence."""
    spans, begin = list[tuple[int, int]](), 0
    for match in _SENTENCE_END.finditer(text):
        if match.start() > begin:
            spans.append((begin, match.start()))
        begin = match.end()
    if begin < len(text):
        spans.append((begin, len(text)))
    for begin, end in spans:
        if normalised := normalise_text(text[begin:end]):
            yield begin, end, normalised


class HeldOut:
    """A set of held-out sentences, as hashes."""

    def __init__(self, hashes: Iterable[str] = ()) -> None:
        self.hashes: set[str] = set(hashes)

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, text: str) -> None:
        """Hold out every sentence of `text`."""
        self.hashes.update(_digest(normalised) for _, _, normalised in _sentences(text))

    def find(self, text: str) -> list[str]:
        """The sentences of `text` that are held out."""
        return [text[a:b] for a, b, normalised in _sentences(text) if _digest(normalised) in self.hashes]

    def remove(self, text: str) -> tuple[list[str], int]:
        """Cut held-out sentences out of `text`.

        Returns:
            The stretches of text that remain, in order (cut where a sentence was removed, so that what was not
            adjacent never becomes so), and the number of sentences removed.
        """
        parts: list[str] = []
        begin, last, removed = None, 0, 0
        for a, b, normalised in _sentences(text):
            if _digest(normalised) in self.hashes:
                if begin is not None:
                    parts.append(text[begin:last])
                begin, removed = None, removed + 1
            else:
                begin = a if begin is None else begin
                last = b
        if not removed:
            return ([text] if text.strip() else []), 0
        if begin is not None:
            parts.append(text[begin:last])
        return parts, removed

    def assert_disjoint(self, texts: Iterable[tuple[str, str]]) -> int:
        """Check (id, text) pairs of training documents. Returns how many were checked.

        Raises:
            DamagedDataError: names the document and the sentence that is held out.
        """
        count = 0
        for name, text in texts:
            count += 1
            found = self.find(text)
            if found:
                raise DamagedDataError(f"training document {name!r} holds the held-out sentence {found[0]!r}")
        return count

    def save(self, path: Path) -> None:
        write_text(path, json.dumps({"kind": "lst-heldout", "version": 1, "hashes": sorted(self.hashes)}, indent=0))

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        """Raises UserError when the file is not a held-out list."""
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read the held-out list ({error})") from error
        if not isinstance(value, dict) or value.get("kind") != "lst-heldout" or value.get("version") != 1:
            raise UserError(f"{path}: is not a held-out list of version 1")
        return cls(value["hashes"])
