"""Word and character error rates after Whisper's English normaliser, for ASR and for TTS transcribed back (SPEC 9).

The edits are counted by jiwer.  The normaliser is Whisper's own, from the package `whisper-normalizer` (that of
transformers needs a table of spellings which no package but this one brings).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lst.errors import UserError


def _missing(error: ImportError) -> UserError:
    return UserError(f"error rates need jiwer and whisper-normalizer ({error}): pip install 'megatron-lst[eval]'")


@functools.cache
def _normaliser() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise _missing(error) from None
    normaliser: Callable[[str], str] = EnglishTextNormalizer()
    return normaliser


def normalise(text: str) -> str:
    """Lower case without punctuation, fillers and brackets; numbers as digits, American spelling, no contractions.

    Raises:
        UserError: `whisper-normalizer` is not installed.
    """
    return _normaliser()(text).strip()


@dataclass(frozen=True)
class ErrorRate:
    """Edits over reference length, all utterances together.

    Attributes:
        rate: may exceed 1 (insertions).
        edits, length: substitutions + insertions + deletions, and the reference's words or characters.
    """

    rate: float
    edits: int
    length: int


def error_rate(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> ErrorRate:
    """WER (`word`) or CER (`character`, spaces included) after normalisation.

    Raises:
        UserError: `jiwer` or `whisper-normalizer` is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise _missing(error) from None
    process: Any = jiwer.process_words if unit == "word" else jiwer.process_characters
    found = process([normalise(r) for r in references], [normalise(h) for h in hypotheses])
    edits = found.substitutions + found.insertions + found.deletions
    length = found.hits + found.substitutions + found.deletions
    return ErrorRate(edits / length if length else float(edits > 0), edits, length)
