"""The joint vocabulary of text pieces and speech units (SPEC 1). Pure numbers; no tokenizer is loaded here.

Layout, computed from sizes and never from literals:

    [0, T)            text ids, the tokenizer's own, BOS and EOS among them
    [T, T + S)        speech units
    T + S             <t>, begins a text span
    T + S + 1         <s>, begins a speech span
    T + S + 2         PAD
    up to padded_size unused, so that the table divides by every tensor-parallel size in use
"""

from dataclasses import dataclass

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.values import Count, CountOr0

IGNORE = -100
"""The label that no loss counts (row end, document end, PAD)."""


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and special ids of one joint vocabulary.

    Args:
        text_size: T, the tokenizer's number of pieces.
        speech_size: S, the codebook's number of entries (501; 1,000 or so for unit BPE).
        bos, eos: the tokenizer's own begin and end of document, both inside [0, T).
        multiple: the embedding table's rows are rounded up to a multiple of this.
    """

    text_size: Count = 32000
    speech_size: Count = 501
    bos: CountOr0 = 1
    eos: CountOr0 = 2
    multiple: Count = 256

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.speech_size < 1 or self.multiple < 1:
            raise UserError(
                f"vocabulary.text_size={self.text_size}, vocabulary.speech_size={self.speech_size} and "
                f"vocabulary.multiple={self.multiple} must be at least 1"
            )
        for name in ("bos", "eos"):
            if not 0 <= getattr(self, name) < self.text_size:
                raise UserError(
                    f"vocabulary.{name}={getattr(self, name)} is outside the text ids: there are "
                    f"vocabulary.text_size={self.text_size}"
                )

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

    def is_speech(self, ids: np.ndarray) -> np.ndarray:
        """True where an id is a speech unit. ids: any integer shape -> bool, same shape."""
        return (ids >= self.text_size) & (ids < self.text_size + self.speech_size)
