"""Word and character error rates after Whisper's normaliser, for ASR and for TTS transcribed back (SPEC 9).

The edits are counted by jiwer.  The normaliser is Whisper's own, from the package `whisper-normalizer` (that of
transformers needs a table of spellings which no package but this one brings): its English one for English, its basic
one for other languages.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lst.errors import UserError


def _missing(error: ImportError) -> UserError:
    return UserError(f"error rates need jiwer and whisper-normalizer ({error}): pip install 'megatron-lst[eval]'")


@functools.cache
def _normaliser(english: bool) -> Callable[[str], str]:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise _missing(error) from None
    normaliser: Callable[[str], str] = EnglishTextNormalizer() if english else BasicTextNormalizer()
    return normaliser


def normalise(text: str, language: str = "en") -> str:
    """Lower case without punctuation and brackets; in English, fillers go, numbers are digits, spelling is American and
    contractions are written out.

    Raises:
        UserError: `whisper-normalizer` is not installed.
    """
    return _normaliser(language == "en")(text).strip()


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


def error_rate(
    references: Sequence[str], hypotheses: Sequence[str], unit: str = "word", language: str = "en"
) -> ErrorRate:
    """WER (`word`) or CER (`character`, spaces included) after normalisation.

    Raises:
        UserError: `jiwer` or `whisper-normalizer` is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise _missing(error) from None
    process: Any = jiwer.process_words if unit == "word" else jiwer.process_characters
    found = process([normalise(r, language) for r in references], [normalise(h, language) for h in hypotheses])
    edits = found.substitutions + found.insertions + found.deletions
    length = found.hits + found.substitutions + found.deletions
    return ErrorRate(edits / length if length else float(edits > 0), edits, length)
