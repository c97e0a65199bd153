"""A long recording, read where it is asked for: memory does not grow with the file."""

from collections.abc import Iterator
from math import gcd
from pathlib import Path

import numpy as np

from lst_prep.audio import RATE, open_audio
from lst_prep.config import AudioConfig
from lst_prep.rejection import Rejection

_MARGIN = 32
"""Samples on each side of a stretch that the resampling filter sees, at least; it reaches 10."""


class Recording:
    """[start, end) seconds of a file as 16 kHz mono.

    Args:
        path: any file that libsndfile reads.
        start, end: seconds; None: from the beginning, to the end.

    Raises:
        Rejection: unreadable_audio, low_rate_audio, empty_audio; `read` raises the first of them, too.
    """

    def __init__(self, path: Path, start: float | None, end: float | None, config: AudioConfig) -> None:
        self._path, self._span, self._config = path, (start, end), config
        with open_audio(path, start, end, config) as (file, first, last):
            divisor = gcd(file.samplerate, RATE)
            self._up, self._down = RATE // divisor, file.samplerate // divisor
            self._samples = -(-(last - first) * self._up // self._down)

    def __len__(self) -> int:
        """Samples at 16 kHz."""
        return self._samples

    @property
    def seconds(self) -> float:
        return len(self) / RATE

    def read(self, begin: int, end: int) -> np.ndarray:
        """Samples [begin, end) at 16 kHz, float32 [end - begin] or fewer at the end of the recording."""
        up, down = self._up, self._down
        margin = -(-_MARGIN // up) if down > 1 or up > 1 else 0
        low, high = max(begin // up - margin, 0), -(-end // up) + margin  # in steps of both rates at once
        with open_audio(self._path, *self._span, self._config) as (file, first, last):
            file.seek(min(first + low * down, last))
            wanted = max(min(first + high * down, last) - file.tell(), 0)
            samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
        if len(samples) < wanted:
            raise Rejection("unreadable_audio", f"{self._path}: truncated at {begin / RATE:.0f} s")
        if margin:
            from scipy.signal import resample_poly

            samples = resample_poly(samples, up, down)
        return np.asarray(samples[begin - low * up : min(end, self._samples) - low * up], np.float32)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """All of it, `size` samples at a time; the last block is what is left."""
        for begin in range(0, len(self), size):
            yield self.read(begin, min(begin + size, len(self)))
