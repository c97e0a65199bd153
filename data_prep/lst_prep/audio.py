"""Audio in: decode, mix to mono, resample to 16 kHz, and refuse what is no speech, each with a reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile

from lst_prep.config import AudioConfig
from lst_prep.rejection import Rejection

RATE = 16000
"""Sample rate of everything behind this module."""

SAMPLES_PER_FRAME = RATE // 25
"""640 samples a 25 Hz frame."""


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


@contextmanager
def open_audio(
    path: Path, start: float | None, end: float | None, config: AudioConfig
) -> Iterator[tuple[soundfile.SoundFile, int, int]]:
    """The file, and [first, last) samples of [start, end) seconds, the whole of it by default.

    Raises:
        Rejection: unreadable_audio (also for what goes wrong while it is open), low_rate_audio, empty_audio.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            if rate < config.min_rate:
                raise Rejection("low_rate_audio", f"{rate} Hz")
            first = min(round((start or 0.0) * rate), file.frames)
            last = file.frames if end is None else min(round(end * rate), file.frames)
            if last <= first:
                raise Rejection("empty_audio", f"{file.frames / rate:.2f} s in the file")
            yield file, first, last
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise Rejection("unreadable_audio", f"{path}: {error}") from error


def load(path: Path, start: float | None, end: float | None, config: AudioConfig) -> Audio:
    """Read [start, end) seconds of a file (the whole of it by default) and check it.

    Raises:
        Rejection: unreadable_audio, empty_audio, too_short, too_long, low_rate_audio, silent_audio, clipped_audio.
    """
    with open_audio(path, start, end, config) as (file, first, last):
        rate, seconds = file.samplerate, (last - first) / file.samplerate
        if seconds > config.max_seconds:
            raise Rejection("too_long", f"{seconds:.1f} s; give the times of its segments, or set cutting.by")
        if seconds < config.min_seconds:
            raise Rejection("too_short", f"{seconds:.3f} s")
        file.seek(first)
        samples = file.read(last - first, dtype="float32", always_2d=True)
    if len(samples) < (last - first) * 0.99:
        raise Rejection("unreadable_audio", f"{path}: truncated, {len(samples)} of {last - first} samples")
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
    clipped = float((np.abs(samples) >= 0.999).mean())
    if clipped > config.max_clipped:
        raise Rejection("clipped_audio", f"{clipped:.1%} of the samples")
    if rate != RATE:
        from scipy.signal import resample_poly

        divisor = gcd(rate, RATE)
        samples = resample_poly(samples, RATE // divisor, rate // divisor)
        changes.append("resampled")
    return Audio(np.ascontiguousarray(samples, dtype=np.float32), tuple(changes))
