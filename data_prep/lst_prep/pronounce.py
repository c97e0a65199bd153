"""Pronunciations of words that the aligner's own dictionary lacks."""

import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from megatron_lst.errors import UserError

PHONES = frozenset(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)
"""The ARPAbet of CMUdict, which pocketsphinx's English model uses."""
_FLITE = {"ax": "AH", "axr": "ER", "ix": "IH", "el": "AH L", "em": "AH M", "en": "AH N"}


def read_table(path: Path) -> dict[str, str]:
    """Lines `word<TAB>PHONES`. Raises UserError naming the line that is wrong."""
    table: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"align.pronunciations: cannot read {path} ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        word, _, phones = line.partition("\t")
        if not phones or not set(phones.split()) <= PHONES:
            raise UserError(f"{path}:{number}: expected `word<TAB>PHONES` in CMUdict's phones, found {line!r}")
        table[word] = phones
    return table


def flite_version() -> str:
    """What the installed flite calls itself, as in `flite-2.2-current`; empty where there is none."""
    if shutil.which("flite") is None:
        return ""
    said = subprocess.run(["flite", "--version"], capture_output=True, text=True, timeout=60)  # exits with 1
    return next((word for word in said.stdout.split() if word.startswith("flite-")), "flite of an unknown version")


@lru_cache(maxsize=65536)
def flite_pronunciation(word: str) -> tuple[str, ...]:
    """Phones of `word` by flite's lexicon and letter-to-sound rules; empty when it gives none."""
    found = subprocess.run(
        ["flite", "-voice", "kal16", "-ps", "-t", word, "none"], capture_output=True, text=True, timeout=60
    ).stdout.split()
    phones = " ".join(_FLITE.get(phone, phone.upper()) for phone in found if phone != "pau").split()
    return tuple(phones) if phones and set(phones) <= PHONES else ()
