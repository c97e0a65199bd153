"""Words with times as JSON: of Whisper (`word_timestamps`), of WhisperX, or a plain list of words."""

import json
from collections.abc import Iterator
from typing import Any

from lst_prep.align.imported.labels import Label
from lst_prep.places import AnyPath
from lst_prep.rejection import Rejection

_TEXT, _BEGIN, _END = ("word", "text", "label"), ("start", "begin", "start_time"), ("end", "stop", "end_time")
_SCORE = ("score", "probability", "confidence", "conf")


def read_json_words(text: str, path: AnyPath) -> list[Label]:
    """The words of `segments[].words`, of `words`, or of the list itself.

    A word without times is one that the aligner could not place (WhisperX gives numbers none).

    Raises:
        Rejection: bad_alignment.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejection("bad_alignment", f"{path}: not JSON ({error})") from None
    return [_label(word, f"{path}: {place}") for word, place in _words(value, path)]


def _words(value: Any, path: AnyPath) -> Iterator[tuple[Any, str]]:
    if isinstance(value, dict) and isinstance(value.get("segments"), list):
        for index, segment in enumerate(value["segments"]):
            inner = segment.get("words") if isinstance(segment, dict) else None
            if not isinstance(inner, list):
                raise Rejection(
                    "bad_alignment", f"{path}: segments[{index}] has no words: run Whisper with word_timestamps"
                )
            yield from ((word, f"segments[{index}].words[{i}]") for i, word in enumerate(inner))
        return
    inner = value.get("words") if isinstance(value, dict) else value
    if not isinstance(inner, list):
        raise Rejection("bad_alignment", f"{path}: no list of words, no `words` and no `segments`")
    yield from ((word, f"words[{i}]") for i, word in enumerate(inner))


def _label(word: Any, where: str) -> Label:
    if not isinstance(word, dict):
        raise Rejection("bad_alignment", f"{where}: not an object")
    text = next((word[key] for key in _TEXT if key in word), None)
    if not isinstance(text, str):
        raise Rejection("bad_alignment", f"{where}: no {' or '.join(_TEXT)}")
    begin, end, score = (_number(word, keys, where) for keys in (_BEGIN, _END, _SCORE))
    if (begin is None) != (end is None):
        raise Rejection("bad_alignment", f"{where}: has one of {_BEGIN[0]} and {_END[0]}")
    return Label(text.strip(), begin, end, score or 0.0, where)


def _number(word: dict[str, Any], keys: tuple[str, ...], where: str) -> float | None:
    key = next((key for key in keys if word.get(key) is not None), "")
    value = word.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise Rejection("bad_alignment", f"{where}: {key} is {str(value)[:40]!r}, not a number")
    return float(value)
