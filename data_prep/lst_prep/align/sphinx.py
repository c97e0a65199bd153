"""Forced alignment with pocketsphinx: its English acoustic model comes in the wheel, so it needs nothing else."""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from lst_prep.align.spans import AlignedWords, Piece, attempt, group_spoken
from lst_prep.audio import RATE
from lst_prep.config import AlignConfig
from lst_prep.pronounce import flite_pronunciation, flite_version, read_table
from lst_prep.reading import Inputs
from lst_prep.recording import Recording
from lst_prep.rejection import Rejection
from lst_prep.transcript import Word
from megatron_lst.errors import UserError

_FRAME = 0.01
_FLOOR = 1e-300
_FAST = {"ds": 2}
"""The first try evaluates the acoustic model on every second 10 ms frame: half again as fast, and on synthetic speech
the boundaries are as good (docs/data-prep.md has the figures)."""
_WIDE = {"beam": 1e-100, "pbeam": 1e-100, "wbeam": 1e-80}
"""The second try, on every frame with wide search beams: slower, and what the first try lost is usually found."""

_PRIMER = (np.random.default_rng(0).standard_normal(3200) * 1000).astype(np.int16).tobytes()
"""0.2 s of noise, the same before every search: see `_forget`."""

_MOST_LEFT = 10
"""Windows; with fewer words left than windows want, a longer rest is not searched at once."""

Segment = tuple[str, float, float, float]
"""(spoken word, begin s, end s, score)."""


class SphinxAligner:
    """Two decoders (a fast one first, a thorough one when that fails), kept for many pieces.

    A long piece is walked in windows: a window's grammar is a chain of words that may end after any plausible one, so
    the search itself finds how far the transcript goes in the window; the window is cut back to its last pause, and
    the next one begins there. The last window has to end with the last word. No state is carried from piece to piece,
    so results do not depend on which worker does what.

    Silence costs nothing (`silprob=1`): with the recogniser's usual penalty words swallow most pauses.

    A word's score is its mean acoustic log-likelihood per 10 ms frame (about -1 to -6 for good alignments).
    """

    def __init__(self, config: AlignConfig) -> None:
        try:
            import pocketsphinx
        except ModuleNotFoundError as error:
            raise UserError("align.aligner pocketsphinx: pip install pocketsphinx") from error
        self._decoders = [
            pocketsphinx.Decoder(lm=None, loglevel="FATAL", cmn="batch", silprob=1.0, **options)
            for options in (_FAST, _WIDE)
        ]
        for decoder in self._decoders:
            decoder.add_allphone_file("primer", None)
        self._table: dict[str, str] = {}
        name = f"pocketsphinx {version('pocketsphinx')}"
        digest = hashlib.sha256(f"{name} windows-3 {_FAST} {_WIDE}".encode())
        for path in config.pronunciations:
            with Inputs().local(path) as table:
                self._table.update(read_table(table))
                digest.update(table.read_bytes())
        flite = flite_version() if config.flite else ""
        self._flite = bool(flite)
        if config.flite:  # said in words, so that a refusal names what was installed in between
            name += f" with {flite}" if flite else " without flite"
        self.fingerprint = f"{name} {digest.hexdigest()[:16]}"
        self._window = config.piece_seconds

    def align(self, samples: np.ndarray, words: list[Word]) -> AlignedWords:
        return self._align(_Samples(samples), words)

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        return [attempt(partial(self.align, piece.samples, piece.words)) for piece in pieces]

    def align_recording(self, recording: Recording, words: list[Word]) -> AlignedWords:
        """As `align`, reading one window at a time: memory grows with the words, not with the audio."""
        return self._align(recording, words)

    def _align(self, source: "Recording | _Samples", words: list[Word]) -> AlignedWords:
        spoken = [part for word in words for part in word.spoken]
        for part in dict.fromkeys(spoken):
            self._learn(part)
        segments = self._walk(source, spoken)
        times = [(begin, end) for _, begin, end, _ in segments]
        return group_spoken(words, times, [score for *_, score in segments])

    def _walk(self, source: "Recording | _Samples", spoken: list[str]) -> list[Segment]:
        """Align window by window."""
        found: list[Segment] = []
        start, window = 0, int(self._window * RATE)
        letters = np.cumsum([0] + [len(word) + 1 for word in spoken])
        while len(source) - start > 1.5 * window:
            first = len(found)
            share = window / (len(source) - start)
            expected = (letters[-1] - letters[first]) * share
            low, high = np.searchsorted(letters, letters[first] + np.array([0.4, 1.8]) * expected)
            low, high = max(int(low) - first, 2), min(int(high) + 4, len(spoken)) - first
            if high <= low:
                break
            part = self._search(_pcm(source.read(start, start + window)), spoken[first : first + high], low)
            part = part[: _last_pause(part)]
            origin = start / RATE
            found += [(word, origin + begin, origin + end, score) for word, begin, end, score in part]
            start = round(found[-1][2] * RATE)
            if len(found) == len(spoken):
                raise Rejection(
                    "not_aligned", f"all words were heard by {found[-1][2]:.1f} s of {len(source) / RATE:.1f} s"
                )
        rest = spoken[len(found) :]
        origin = start / RATE
        if len(source) - start > _MOST_LEFT * window:
            left = len(source) / RATE - origin
            raise Rejection("not_aligned", f"{len(rest)} words are left at {origin:.1f} s for {left:.0f} s of audio")
        last = self._search(_pcm(source.read(start, len(source))), rest, len(rest))
        return found + [(word, origin + begin, origin + end, score) for word, begin, end, score in last]

    def _search(self, pcm: np.ndarray, spoken: list[str], least: int) -> list[Segment]:
        """Best path through the first m of the words, least <= m <= len(spoken)."""
        for decoder in self._decoders:
            found = _decode(decoder, pcm, spoken, least)
            if found is not None and len(found) >= least:
                if [word for word, *_ in found] != spoken[: len(found)]:
                    raise Rejection("words_differ", f"{len(found)} words returned, not the transcript's")
                return found
        raise Rejection("not_aligned", f"words {spoken[0]} ... {spoken[-1]} in {len(pcm) / RATE:.1f} s")

    def _learn(self, word: str) -> None:
        if self._decoders[0].lookup_word(word) is not None:
            return
        phones = self._table.get(word) or (" ".join(flite_pronunciation(word)) if self._flite else "")
        if not phones:
            raise Rejection("no_pronunciation", word)
        for decoder in self._decoders:
            decoder.add_word(word, phones, True)


class _Samples:
    """Samples in memory, read as a `Recording` is."""

    def __init__(self, samples: np.ndarray) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, begin: int, end: int) -> np.ndarray:
        return self._samples[begin:end]


def _pcm(samples: np.ndarray) -> np.ndarray:
    """float32 [N] -> int16 [N]."""
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


def _forget(decoder: Any) -> None:
    """Bring a decoder to one state, whatever it has heard. It keeps the mean of the features, and, for each codebook of
    Gaussians, which of them were best when the codebook was last in use: a loop of all phones uses every one."""
    decoder.activate_search("primer")
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(_PRIMER, full_utt=True)
    decoder.end_utt()
    decoder.reinit_feat()


def _decode(decoder: Any, pcm: np.ndarray, spoken: list[str], least: int) -> list[Segment] | None:
    """One pass of one decoder; None when it finds no path."""
    final = len(spoken)
    links: list[tuple[Any, ...]] = [(i, i + 1, 1.0, word) for i, word in enumerate(spoken)]
    links += [(i, final, 1.0) for i in range(least, final)]
    decoder.add_fsg("window", decoder.create_fsg("window", 0, final, links))
    try:
        _forget(decoder)
        decoder.activate_search("window")
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
    except RuntimeError:
        return None
    if decoder.hyp() is None:
        return None
    found = []
    for segment in decoder.seg():
        if segment.word[0] in "<[+(":
            continue
        frames = segment.end_frame - segment.start_frame + 1
        score = math.log(max(segment.ascore, _FLOOR)) / frames
        begin, end = segment.start_frame * _FRAME, (segment.end_frame + 1) * _FRAME
        found.append((segment.word.split("(")[0], begin, end, score))
    return found


def _last_pause(part: list[Segment]) -> int:
    """How many words of a window to keep: up to the longest pause in its last half, else all but the last three."""
    half = max(len(part) // 2, 1)
    gaps = [part[i][1] - part[i - 1][2] for i in range(half, len(part))]
    if gaps and max(gaps) >= 0.1:
        return half + int(np.argmax(gaps))
    return max(len(part) - 3, 1)
