"""Audio in: decode, mix to mono, resample to 16 kHz, and refuse what is no speech, each with a reason."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import soundfile

from lst_prep import endings
from lst_prep.config import SAMPLE_RATE, AudioConfig
from lst_prep.mpeg import with_honest_length
from lst_prep.places import AnyPath
from lst_prep.reading import CannotRead, Inputs
from lst_prep.rejection import Rejection
from megatron_lst.errors import LstError

RATE = SAMPLE_RATE
"""Sample rate of everything behind this module."""


@dataclass(frozen=True)
class Audio:
    """Decoded audio.

    Attributes:
        samples: float32 [N], 16 kHz mono, within about [-1, 1].
        changes: what was done to it on the way in, for the report: `resampled`, `mixed_to_mono`.
    """

    samples: np.ndarray
    changes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


class _Watched:
    """A file for libsndfile, which cannot raise through its callbacks: what goes wrong is kept for later.

    It has no name, so that libsndfile goes by what is in the file.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.wrong: CannotRead | None = None

    def _try(self, action: Callable[[], int], instead: int) -> int:
        if self.wrong is None:
            try:
                return action()
            except CannotRead as error:
                self.wrong = error
        return instead

    def readinto(self, buffer: Any) -> int:
        return self._try(lambda: int(self._file.readinto(buffer)), 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._try(lambda: int(self._file.seek(offset, whence)), -1)

    def tell(self) -> int:
        return int(self._file.tell())


class OpenAudio:
    """An open file of sound.

    Attributes:
        path: where it lies.
        rate: samples a second.
        frames: samples in it; of some MP3 files only known as a number that they cannot exceed.
        exact: whether `frames` is what there is.
    """

    def __init__(self, path: AnyPath, file: Any, watched: _Watched, exact: bool) -> None:
        self.path, self._file, self._watched, self.exact = path, file, watched, exact
        self.rate, self.frames = int(file.samplerate), int(file.frames)

    def read(self, first: int, count: int, channel: int | None = None) -> np.ndarray:
        """Up to `count` samples from sample `first` on, float32 [n, channels], or [n, 1] of one channel.

        Raises:
            CannotRead: the file cannot be read now.
            Rejection: unreadable_audio: there is no such channel.
        """
        self._file.seek(first)
        samples: np.ndarray = self._file.read(count, dtype="float32", always_2d=True)
        if self._watched.wrong is not None:
            raise self._watched.wrong
        if channel is None:
            return samples
        if channel >= samples.shape[1]:
            raise Rejection("unreadable_audio", f"{self.path}: no channel {channel}, it has {samples.shape[1]}")
        return samples[:, channel : channel + 1]

    def count(self) -> int:
        """Samples that decoding gives: what `frames` is from now on."""
        if not self.exact:
            found = 0
            while found < self.frames and (more := len(self.read(found, 1 << 20))):
                found += more
            self.frames, self.exact = found, True
        return self.frames


@contextmanager
def open_audio(
    path: AnyPath, start: float | None, end: float | None, config: AudioConfig, inputs: Inputs | None = None
) -> Iterator[tuple[OpenAudio, int, int]]:
    """The file, and [first, last) samples of [start, end) seconds, the whole of it by default.

    Raises:
        Rejection: unreadable_audio (also for what goes wrong while it is open), low_rate_audio, empty_audio,
            outside_audio.
        CannotRead: the file cannot be read now, here or while it is open.
    """
    watched: _Watched | None = None
    try:
        with (inputs or Inputs()).open(path) as file:
            if end is None and (broken := endings.fault(file)) is not None:
                raise Rejection("unreadable_audio", f"{path}: {broken}")
            longer = with_honest_length(file)
            watched = _Watched(longer or file)
            with soundfile.SoundFile(watched) as sound:
                yield _span(OpenAudio(path, sound, watched, longer is None), start, end, config)
    except (Rejection, LstError, MemoryError):
        raise
    except Exception as error:  # libsndfile has many ways to say that it does not know a file
        if watched is not None and watched.wrong is not None:
            raise watched.wrong from error
        why = getattr(error, "error_string", None) or getattr(error, "strerror", None)
        why = why or f"{type(error).__name__}: {error}"
        raise Rejection("unreadable_audio", f"{path}: {why}") from error


_SLACK = 0.5
"""Seconds that the times of a piece may reach behind the end of its audio: times are rounded."""


def _span(found: OpenAudio, start: float | None, end: float | None, config: AudioConfig) -> tuple[OpenAudio, int, int]:
    if found._watched.wrong is not None:
        raise found._watched.wrong
    if found.rate < config.min_rate:
        raise Rejection("low_rate_audio", f"{found.rate} Hz")
    first = round((start or 0.0) * found.rate)
    frames = found.count() if end is None or first >= found.frames else found.frames
    if end is not None and end * found.rate > frames + _SLACK * found.rate:
        raise Rejection("outside_audio", f"{end:.2f} s is behind the end, {frames / found.rate:.2f} s")
    last = frames if end is None else min(round(end * found.rate), frames)
    if last <= first:
        raise Rejection("empty_audio", f"{frames / found.rate:.2f} s in the file")
    return found, first, last


def load(
    path: AnyPath,
    start: float | None,
    end: float | None,
    config: AudioConfig,
    inputs: Inputs | None = None,
    channel: int | None = None,
) -> Audio:
    """Read [start, end) seconds of a file (the whole of it by default) and check it.

    Args:
        inputs: opens the file.
        channel: the one to take, from 0; None: the mean of all.

    Raises:
        Rejection: unreadable_audio, empty_audio, outside_audio, too_short, too_long, low_rate_audio, silent_audio,
            clipped_audio, given_up.
        CannotRead: the file cannot be read now.
    """
    with open_audio(path, start, end, config, inputs) as (file, first, last):
        rate, seconds = file.rate, (last - first) / file.rate
        if seconds > config.max_seconds:
            raise Rejection("too_long", f"{seconds:.1f} s; give the times of its segments, or set cutting.by")
        if seconds < config.min_seconds:
            raise Rejection("too_short", f"{seconds:.3f} s")
        samples = file.read(first, last - first, channel)
        if len(samples) < (last - first) * 0.99:
            missing = (last - first - len(samples)) / rate
            if not file.exact and missing > _SLACK:
                raise Rejection(
                    "outside_audio", f"{end:.2f} s is behind the end, {(first + len(samples)) / rate:.2f} s"
                )
            if file.exact:
                what = f"{path}: truncated, {len(samples)} of {last - first} samples"
                raise Rejection("unreadable_audio", what)
    return check(samples, rate, config)


def check(samples: np.ndarray, rate: int, config: AudioConfig) -> Audio:
    """Mono, 16 kHz, and audible. samples: float32 [N] or [N, channels]."""
    changes: list[str] = []
    if samples.ndim == 2:
        if samples.shape[1] > 1:
            changes.append("mixed_to_mono")
        samples = samples.mean(axis=1)
    if not len(samples):
        raise Rejection("empty_audio")
    if not np.isfinite(samples).all():
        raise Rejection("unreadable_audio", "samples that are not finite")
    peak = float(np.abs(samples).max())
    if peak < config.min_peak:
        raise Rejection("silent_audio", f"peak {peak:.2e}")
    clipped = float((np.abs(samples) >= 0.999).mean())  # share of samples at full scale
    if clipped > config.max_clipped:
        raise Rejection("clipped_audio", f"{clipped:.1%} of the samples")
    if rate != RATE:
        samples = to_rate(samples, rate)
        changes.append("resampled")
    return Audio(np.ascontiguousarray(samples, dtype=np.float32), tuple(changes))


def to_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    """float [N] at `rate` -> at 16 kHz."""
    from scipy.signal import resample_poly

    divisor = gcd(rate, RATE)
    resampled: np.ndarray = resample_poly(samples, RATE // divisor, rate // divisor)
    return resampled
