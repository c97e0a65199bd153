"""A stretch of speech to listen to, with its words and the patches that a strategy makes of it."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from megatron_lst.pages import Player, Sound, Span, Track
from megatron_lst.pages.sound import LONGEST
from megatron_lst.patching.strategies import ALIGNED, Patcher


def speech_player(
    title: str,
    about: str,
    text: str,
    words: np.ndarray,
    chars: np.ndarray,
    frames: int,
    rate: Fraction,
    patchers: Mapping[str, Patcher],
    sound: Sound | str,
    depth: int = 1,
) -> Player:
    """The first seconds of a piece of speech.

    Args:
        words: int [W, 2], half-open frame span of each word (or segment) in [0, frames).
        chars: int [W, 2], half-open span of each in `text`.
        rate: frames a second.
        patchers: name -> strategy, a time line each. Aligned ones need words.
        sound: what is heard, or why there is nothing to hear.
        depth: Q, speech tokens of a frame: strategies cut tokens.
    """
    shown = min(frames, int(LONGEST * rate))
    count = int(np.searchsorted(words[:, 0], shown)) if len(words) else 0
    spans = np.minimum(words[:count], shown)
    labels = [text[a:b] for a, b in chars[:count]]
    tracks = [
        Track(name, _patches(patcher, shown * depth, spans * depth, labels, rate * depth))
        for name, patcher in patchers.items()
        if patcher.method != ALIGNED or count
    ]
    begun = f"the first {shown / float(rate):g} seconds" if shown < frames else ""
    return Player(
        title,
        ", ".join(part for part in (about, begun) if part),
        text if not count else "",
        sound if isinstance(sound, str) else "",
        sound if isinstance(sound, Sound) else None,
        [Span(_time(a, rate), _time(b, rate), label) for (a, b), label in zip(spans, labels, strict=True)],
        tracks,
        _time(shown, rate),
        sound.levels if isinstance(sound, Sound) else (),
    )


def _time(frame: int, rate: Fraction) -> float:
    return round(int(frame) / float(rate), 3)


def _patches(patcher: Patcher, tokens: int, spans: np.ndarray, labels: list[str], rate: Fraction) -> list[Span]:
    """`spans` in tokens, `rate` tokens a second."""
    aligned = patcher.method == ALIGNED
    cut = patcher.cut(tokens, spans if aligned else None)
    ends = np.cumsum(cut.length)
    begins = ends - cut.length
    label_at = dict(zip(spans[:, 0].tolist(), labels, strict=True)) if aligned else {}
    kinds = [("word" if word else "silence") if aligned else "patch" for word in cut.word]
    return [
        Span(_time(begin, rate), _time(end, rate), label_at.get(int(begin), ""), kind)
        for begin, end, kind in zip(begins, ends, kinds, strict=True)
    ]
