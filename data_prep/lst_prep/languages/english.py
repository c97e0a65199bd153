"""English as pocketsphinx's dictionary and most English CTC models want it: a to z, everything spelled out."""

import re
import unicodedata

from lst_prep.rejection import Rejection

_ABBREVIATIONS = {
    "mr.": "mister", "mrs.": "missus", "ms.": "miz", "dr.": "doctor", "st.": "saint", "messrs.": "messieurs",
    "etc.": "et cetera", "&c.": "et cetera", "vs.": "versus", "no.": "number", "mt.": "mount", "jr.": "junior",
    "esq.": "esquire", "col.": "colonel", "capt.": "captain", "gen.": "general", "rev.": "reverend",
}  # fmt: skip
_SYMBOLS = {"&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at "}
_NUMERALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_ONES = _NUMERALS.split()
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def spell_number(value: int) -> str:
    """Cardinal of 0 <= value < 10^15 in words: 1611 -> `one thousand six hundred eleven`."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10] + (f" {_ONES[value % 10]}" if value % 10 else "")
    if value < 1000:
        return f"{_ONES[value // 100]} hundred" + (f" {spell_number(value % 100)}" if value % 100 else "")
    for power, name in ((12, "trillion"), (9, "billion"), (6, "million"), (3, "thousand")):
        size = 10**power
        if value >= size:
            return f"{spell_number(value // size)} {name}" + (f" {spell_number(value % size)}" if value % size else "")
    raise AssertionError(value)


def spell_year(value: int) -> str:
    """1811 -> `eighteen eleven`, 1905 -> `nineteen oh five`, 1900 -> `nineteen hundred`."""
    high, low = divmod(value, 100)
    tail = "hundred" if low == 0 else f"oh {_ONES[low]}" if low < 10 else spell_number(low)
    return f"{spell_number(high)} {tail}"


def spell_ordinal(value: int) -> str:
    words = spell_number(value).split()
    last = words[-1]
    words[-1] = _ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return " ".join(words)


def _spell_digits(chunk: str) -> str:
    """Every run of digits in `chunk` in words: money, decimals, years, ordinals, then cardinals."""

    def money(match: re.Match[str]) -> str:
        name = {"$": "dollar", "£": "pound", "€": "euro"}[match[1]]
        return f" {match[2]} {name}{'' if match[2] == '1' else 's'} "

    def plain(match: re.Match[str]) -> str:
        digits = match[0].replace(",", "")
        if len(digits) > 15 or (len(digits) > 1 and digits[0] == "0"):
            return " " + " ".join(_ONES[int(d)] for d in digits) + " "
        value = int(digits)
        year = "," not in match[0] and 1100 <= value <= 1999
        return f" {spell_year(value) if year else spell_number(value)} "

    chunk = re.sub(r"([$£€])(\d[\d,]*)", money, chunk)
    chunk = re.sub(r"(\d{1,15})(?:st|nd|rd|th)\b", lambda m: f" {spell_ordinal(int(m[1]))} ", chunk)
    chunk = re.sub(r"(?<=\d)\.(\d+)", lambda m: " point " + " ".join(_ONES[int(d)] for d in m[1]) + " ", chunk)
    return re.sub(r"\d[\d,]*\d|\d", plain, chunk)


def english_words(chunk: str, numbers: str) -> tuple[str, ...]:
    """Spoken words of a stretch without white space, [a-z'] only; () of punctuation alone.

    Raises:
        Rejection: number, language.
    """
    lowered = chunk.lower().strip("\"'“”‘’()«»„*_")
    lowered = _ABBREVIATIONS.get(lowered.rstrip(",;:!?"), lowered)
    for symbol, name in _SYMBOLS.items():
        lowered = lowered.replace(symbol, name)
    if any(ch.isdigit() for ch in lowered):
        if numbers == "reject":
            raise Rejection("number", chunk)
        lowered = _spell_digits(unicodedata.normalize("NFKC", lowered))
    folded = unicodedata.normalize("NFKD", lowered.replace("’", "'").replace("‘", "'"))
    folded = folded.replace("æ", "ae").replace("œ", "oe").replace("ß", "ss").replace("ø", "o")
    bare = "".join(ch for ch in folded if not unicodedata.combining(ch))
    foreign = [ch for ch in bare if ch.isalnum() and not ("a" <= ch <= "z")]
    if foreign:
        raise Rejection("language", f"{chunk!r} has {foreign[0]!r}")
    words = (part.strip("'") for part in re.split(r"[^a-z']+", bare))
    return tuple(word for word in words if word)
