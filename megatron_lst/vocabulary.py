"""The joint vocabulary of text pieces and speech units (SPEC 1). Pure numbers; no tokenizer is loaded here.

Layout, computed from sizes and never from literals:

    [0, T)            text ids, the tokenizer's own, BOS and EOS among them
    [T, T + S)        speech tokens; codebooks one after the other, each its own range
    T + S             <t>, begins a text span
    T + S + 1         <s>, begins a speech span
    T + S + 2         PAD
    up to padded_size unused, so that the table divides by every tensor-parallel size in use
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.values import Count, CountOr0, Rate, hertz

IGNORE = -100
"""The label that no loss counts (row end, document end, PAD)."""


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of one joint vocabulary.

    Args:
        text_size: T, rows of the tables for text: the tokenizer's number of pieces, or more where a language model's
            tables are longer than its tokenizer (Qwen).
        tokenizer_size: the tokenizer's number of pieces where it is not T.
        speech_size: S, entries of all codebooks together (501; 1,000 or so for unit BPE).
        bos, eos: the tokenizer's own begin and end of document, both inside [0, T).
        multiple: the embedding table's rows are rounded up to a multiple of this.
        codebooks: K_q, entries of each codebook of the speech tokens, which sum to S; empty: one of S entries.
        frame_rate: frames of speech a second: a number, or a fraction such as 80/3.
        codec: fingerprint of what made the speech tokens, compared with the shards'; empty: not compared.
    """

    text_size: Count = 32000
    speech_size: Count = 501
    bos: CountOr0 = 1
    eos: CountOr0 = 2
    multiple: Count = 256
    codebooks: tuple[Count, ...] = ()
    frame_rate: Rate = 25.0
    codec: str = ""
    tokenizer_size: Count | None = None

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.speech_size < 1 or self.multiple < 1:
            raise UserError(
                f"vocabulary.text_size={self.text_size}, vocabulary.speech_size={self.speech_size} and "
                f"vocabulary.multiple={self.multiple} must be at least 1"
            )
        if self.pieces > self.text_size:
            raise UserError(f"vocabulary.text_size={self.text_size} must hold vocabulary.tokenizer_size={self.pieces}")
        for name in ("bos", "eos"):
            if not 0 <= getattr(self, name) < self.text_size:
                raise UserError(
                    f"vocabulary.{name}={getattr(self, name)} is outside the text ids: there are "
                    f"vocabulary.text_size={self.text_size}"
                )
        if self.codebooks and (min(self.codebooks) < 1 or sum(self.codebooks) != self.speech_size):
            raise UserError(
                f"vocabulary.codebooks={list(self.codebooks)} must be at least 1 each and sum to "
                f"vocabulary.speech_size={self.speech_size}; they sum to {sum(self.codebooks)}"
            )
        parse_rate(self.frame_rate, "vocabulary.frame_rate")

    @property
    def pieces(self) -> int:
        """Pieces of the tokenizer; text ids from here to T never occur."""
        return self.tokenizer_size or self.text_size

    @property
    def rate(self) -> Fraction:
        """Frames of speech a second."""
        return parse_rate(self.frame_rate, "vocabulary.frame_rate")

    @property
    def depth(self) -> int:
        """Q, speech tokens of a frame."""
        return len(self.codebooks) or 1

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K_q, entries of each codebook."""
        return self.codebooks or (self.speech_size,)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [Q], the first speech id of each codebook."""
        return np.cumsum((0, *self.codebook_sizes[:-1]))

    def __str__(self) -> str:
        sizes = " + ".join(f"{size:,}" for size in self.codebook_sizes)
        same = len(set(self.codebooks)) == 1 and self.depth > 1
        sizes = f"{self.depth} x {self.codebooks[0]:,}" if same else sizes
        named = f" ({self.codec})" if self.codec else ""
        return f"{self.text_size:,} text pieces; speech at {rate_text(self.rate)} Hz, {sizes}{named}"

    def speech_tokens(self, seconds: float) -> int:
        """Speech tokens of so many seconds, whole frames."""
        return int(seconds * self.rate) * self.depth

    def seconds(self, speech_tokens: int) -> float:
        """Seconds of so many speech tokens."""
        return float(speech_tokens / self.depth / self.rate)

    @property
    def text_marker(self) -> int:
        return self.text_size + self.speech_size

    @property
    def speech_marker(self) -> int:
        return self.text_size + self.speech_size + 1

    @property
    def pad(self) -> int:
        return self.text_size + self.speech_size + 2

    @property
    def used_size(self) -> int:
        """Number of ids that mean something; ids from here to `padded_size` never occur."""
        return self.text_size + self.speech_size + 3

    @property
    def padded_size(self) -> int:
        return -(-self.used_size // self.multiple) * self.multiple

    def codebook_of(self, ids: np.ndarray) -> np.ndarray:
        """The codebook of each speech token. ids: int [n], speech tokens -> int64 [n], 0..Q-1."""
        ends = np.cumsum(self.codebook_sizes) + self.text_size
        return np.searchsorted(ends, ids, side="right")

    def turn_after(self, token: int) -> int:
        """The codebook whose turn it is after a token; 0 where no frame is open."""
        if self.depth == 1 or not self.text_size <= token < self.text_size + self.speech_size:
            return 0
        return (int(self.codebook_of(np.array([token]))[0]) + 1) % self.depth

    def frame_fault(self, ids: np.ndarray) -> tuple[int, str] | None:
        """Where frames are broken: speech out of turn, or a span of speech that ends inside a frame.

        Args:
            ids: int [n], of the joint vocabulary.

        Returns:
            (index into `ids`, what is wrong there); None: each span of speech is whole frames.
        """
        if self.depth == 1:
            return None
        speech = self.is_speech(ids)
        place, begins = np.arange(len(ids)), speech & ~np.r_[False, speech[:-1]]
        # The place within the maximal span of speech says whose turn it is.
        turn = (place - np.maximum.accumulate(np.where(begins, place, 0))) % self.depth
        found = self.codebook_of(ids)
        if (bad := speech & (found != turn)).any():
            first = int(np.argmax(bad))
            due = f"not of codebook {int(turn[first])}, whose turn it is in the frame"
            return first, f"of codebook {int(found[first])}, {due}"
        if (bad := speech & ~np.r_[speech[1:], False] & (turn != self.depth - 1)).any():
            first = int(np.argmax(bad))
            return first, f"speech ends inside a frame, after {int(turn[first]) + 1} of its {self.depth} codes"
        return None

    def is_speech(self, ids: np.ndarray) -> np.ndarray:
        """True where an id is a speech unit. ids: any integer shape -> bool, same shape."""
        return (ids >= self.text_size) & (ids < self.text_size + self.speech_size)


def parse_rate(value: float | str | Fraction, key: str) -> Fraction:
    """A rate in hertz as an exact number: 12.5, "12.5" or "80/3".

    Raises:
        UserError: not a number above 0; names the key.
    """
    try:
        return hertz(value)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def rate_text(rate: Fraction) -> str:
    """The shortest way to write a rate that `parse_rate` reads back: 25, 12.5 or 80/3."""
    short = f"{float(rate):.12g}"
    return short if Fraction(short) == rate else str(rate)
