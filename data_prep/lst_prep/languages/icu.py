"""ICU, by way of icu4py, whose wheel brings it: word breaks of scripts without spaces, and numbers in words."""

from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec

from megatron_lst.errors import UserError

_UNSEEN = {ord(character): None for character in "\u00ad\u200b"}
"""ICU marks where a spelled number may be broken."""


def require_icu(what: str, instead: str) -> None:
    """Raises UserError, which names what needs ICU and what to choose in its place, when icu4py is not installed."""
    if find_spec("icu4py") is None:
        raise UserError(f"{what} needs ICU: pip install 'icu4py>=1.2,<2', or {instead}")


def icu_version() -> str:
    """What the breaks depend on."""
    return f"icu4py {version('icu4py')}"


def word_breaks(text: str, language: str) -> list[tuple[int, int]]:
    """Half-open spans that cover `text`: words, punctuation and white space, each by itself."""
    from icu4py.breakers import WordBreaker

    return list(WordBreaker(text, language).segments())


@lru_cache(maxsize=1 << 16)
def spelled(value: int, language: str) -> str:
    """A number's cardinal in words; empty: ICU has no rules for the language."""
    found = _spelled(value, language)
    if language.partition("-")[0] != "en" and found == _spelled(value, "en"):
        return ""  # what ICU falls back to
    return found


def _spelled(value: int, language: str) -> str:
    from icu4py.messageformat import MessageFormat

    return MessageFormat("{n, spellout}", language).format({"n": value}).translate(_UNSEEN)
