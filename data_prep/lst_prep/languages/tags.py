"""Names of languages: BCP 47 tags (`fr`, `zh-Hant`, `pt-BR`), and what other tools call the same."""

import re

ENGLISH = "en"

_TAG = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*")
_SHORT = {
    "eng": "en", "fra": "fr", "fre": "fr", "deu": "de", "ger": "de", "spa": "es", "ita": "it", "por": "pt", "rus": "ru",
    "cmn": "zh", "zho": "zh", "chi": "zh", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my",
    "bur": "my", "bod": "bo", "tib": "bo", "ara": "ar", "arb": "ar", "heb": "he", "iw": "he", "fas": "fa", "per": "fa",
    "hin": "hi", "ben": "bn", "tam": "ta", "tel": "te", "tur": "tr", "nld": "nl", "dut": "nl", "pol": "pl", "ces": "cs",
    "cze": "cs", "ukr": "uk", "ell": "el", "gre": "el", "ron": "ro", "rum": "ro", "hun": "hu", "fin": "fi", "swe": "sv",
    "dan": "da", "nor": "no", "vie": "vi", "ind": "id", "in": "id", "swa": "sw", "cat": "ca", "bul": "bg", "hrv": "hr",
    "slk": "sk", "slo": "sk", "urd": "ur", "aze": "az",
}  # fmt: skip
"""Codes of ISO 639-2 and 639-3, and withdrawn ones, where a language also has a shorter code."""

_UNSPACED = {"zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "nan", "hak"}


def language_tag(text: str) -> str | None:
    """A tag as it is written here (`FRA`, `fr_FR` -> `fr`, `fr-FR`), or None: it has not the form of one."""
    text = text.strip().replace("_", "-")
    if not _TAG.fullmatch(text):
        return None
    base, _, rest = text.partition("-")
    base = _SHORT.get(base.lower(), base.lower())
    return f"{base}-{rest}" if rest else base


def base_language(tag: str) -> str:
    """`zh` of `zh-Hant`."""
    return tag.partition("-")[0]


def is_unspaced(tag: str) -> bool:
    """Whether the language is written without spaces between its words."""
    return base_language(tag) in _UNSPACED


def long_code(tag: str) -> str | None:
    """The code of three letters of ISO 639-3; None: it is not known here."""
    base = base_language(tag)
    if len(base) == 3:
        return base
    return next((long for long, short in _SHORT.items() if short == base and len(long) == 3), None)
