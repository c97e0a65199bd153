"""Any script in Latin letters, by the universal romaniser uroman: what MMS and its kin were trained on."""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from lst_prep.languages.tags import long_code
from megatron_lst.errors import UserError


@lru_cache(maxsize=1)
def _uroman() -> Any:
    from uroman import Uroman

    return Uroman()


def require_uroman() -> None:
    """Raises UserError when it is not installed."""
    if find_spec("uroman") is None:
        raise UserError("align.romanise: pip install 'uroman>=1.3.1,<2'")


@lru_cache(maxsize=1 << 16)
def romanised(word: str, language: str) -> str:
    """A word in lower-case Latin letters; marks that have no sound may be left."""
    return str(_uroman().romanize_string(word, lcode=long_code(language))).lower()
