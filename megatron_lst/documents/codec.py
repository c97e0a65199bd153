"""What made the speech tokens of a document: a codec is data, and travels with shards, runs and exports.

A frame of a codec with Q codebooks is Q codes. In a document they are ids of one speech vocabulary in which each
codebook has its own range: code k of codebook q is `offsets[q] + k`, so that S = K_1 + ... + K_Q ids are in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.vocabulary import parse_rate, rate_text

NARROW = np.dtype("<i2")
"""How ids are stored where all of them fit; else as int32."""


@dataclass(frozen=True)
class Codec:
    """A tokenizer of speech.

    Attributes:
        name: for people: mimi, hubert, mfcc...
        codebooks: K_q, entries of each codebook.
        rate: frames a second.
        fingerprint: equal ids mean the same only where it is equal. Empty is replaced by name, rate and codebooks.
        encoder, decoder: how tokens are made of audio, and audio of tokens, as far as it is known; for people.
    """

    name: str
    codebooks: tuple[int, ...]
    rate: Fraction = Fraction(25)
    fingerprint: str = ""
    encoder: str = field(default="", compare=False)
    decoder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Raises UserError: no codebook, one without entries, or a rate that is not above 0."""
        if not self.codebooks or min(self.codebooks) < 1:
            raise UserError(f"codec.codebooks: expected the number of entries of each codebook, got {self.codebooks}")
        object.__setattr__(self, "rate", parse_rate(self.rate, "codec.rate"))
        if not self.fingerprint:
            sizes = "+".join(f"{n}x{size}" if n > 1 else f"{size}" for size, n in _runs(self.codebooks))
            object.__setattr__(self, "fingerprint", f"{self.name}-{rate_text(self.rate)}-{sizes}")

    @property
    def size(self) -> int:
        """S, ids of all codebooks together."""
        return sum(self.codebooks)

    @property
    def depth(self) -> int:
        """Q, codes of a frame."""
        return len(self.codebooks)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [Q], the first id of each codebook."""
        return np.cumsum((0, *self.codebooks[:-1]))

    @property
    def dtype(self) -> np.dtype:
        """How ids are stored: little-endian int16 where S fits, else int32."""
        return NARROW if self.size <= 1 << 15 else np.dtype("<i4")

    @property
    def plain(self) -> bool:
        """25 Hz and one codebook of ids that int16 holds: all that shards of schema version 1 can say."""
        return self.rate == 25 and self.depth == 1 and self.dtype == NARROW

    def ids(self, codes: np.ndarray) -> np.ndarray:
        """Codes -> ids: int [F, Q] -> [F, Q], or [F] with one codebook, in the dtype that is stored."""
        shifted = (codes + self.offsets).astype(self.dtype)
        return shifted[:, 0] if self.depth == 1 else shifted

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """The inverse of `ids`: int64 [F, Q]."""
        return ids.reshape(-1, self.depth).astype(np.int64) - self.offsets

    def check(self, ids: np.ndarray) -> str:
        """What is wrong with a document's ids; empty: nothing.

        Args:
            ids: int [F] or [F, Q].
        """
        if ids.shape != ((len(ids),) if self.depth == 1 else (len(ids), self.depth)):
            return f"speech ids of shape {list(ids.shape)}, the codec {self.name} has {self.depth} codebooks"
        codes = self.codes(ids)
        if ((codes < 0) | (codes >= self.codebooks)).any():
            frame, book = (int(x) for x in np.argwhere((codes < 0) | (codes >= self.codebooks))[0])
            return (
                f"frame {frame}: code {int(codes[frame, book])} of codebook {book}, which has "
                f"{self.codebooks[book]} entries"
            )
        return ""

    def __str__(self) -> str:
        sizes = " + ".join(f"{n} x {size:,}" for size, n in _runs(self.codebooks))
        return f"{self.name}, {rate_text(self.rate)} Hz, {sizes}"

    def to_plain(self) -> dict[str, Any]:
        """For a manifest, and for an export."""
        return {
            "name": self.name,
            "rate": rate_text(self.rate),
            "codebooks": list(self.codebooks),
            "fingerprint": self.fingerprint,
            "encoder": self.encoder,
            "decoder": self.decoder,
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> "Codec":
        """Raises UserError: keys of another kind."""
        try:
            return cls(**{**value, "codebooks": tuple(int(size) for size in value["codebooks"])})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"codec: expected name, rate, codebooks and fingerprint, got {dict(value)}") from error


def codec_of(manifest: Mapping[str, Any]) -> Codec | None:
    """The codec of a shard set's manifest, or of an export's metadata; None: it has no speech.

    What was written before codecs were data names only a codebook: it is of 25 Hz, and the only one.
    """
    if manifest.get("codec"):
        return Codec.from_plain(manifest["codec"])
    book = manifest.get("codebook")
    if not book or "size" not in book:
        return None
    return Codec(book.get("extractor") or "units", (book["size"],), fingerprint=book["fingerprint"])


def codebook_entry(codec: Codec) -> dict[str, Any]:
    """What readers from before codecs were data look for."""
    return {"fingerprint": codec.fingerprint, "size": codec.size, "extractor": codec.name}


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(size, how often in a row)."""
    found: list[tuple[int, int]] = []
    for size in sizes:
        if found and found[-1][0] == size:
            found[-1] = (size, found[-1][1] + 1)
        else:
            found.append((size, 1))
    return found
