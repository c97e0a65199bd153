"""A long recording, read where it is asked for: memory does not grow with the file."""

from collections.abc import Iterator
from math import gcd

import numpy as np

from lst_prep.audio import RATE, open_audio
from lst_prep.config import AudioConfig
from lst_prep.places import AnyPath
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection

_MARGIN = 32
"""Samples on each side of a stretch that the resampling filter sees, at least; it reaches 10."""


class Recording:
    """[start, end) seconds of a file as 16 kHz mono.

    Args:
        path: any file that libsndfile reads.
        start, end: seconds; None: from the beginning, to the end.
        inputs: opens the file.
        channel: the one to take; None: the mean of all.

    Raises:
        Rejection: unreadable_audio, low_rate_audio, empty_audio, outside_audio; `read` raises the first of them, too.
        CannotRead: the file cannot be read now; so does `read`.
    """

    def __init__(
        self,
        path: AnyPath,
        start: float | None,
        end: float | None,
        config: AudioConfig,
        inputs: Inputs | None = None,
        channel: int | None = None,
    ) -> None:
        self._path, self._config, self._inputs, self._channel = path, config, inputs, channel
        with open_audio(path, start, end, config, inputs) as (file, first, last):
            divisor = gcd(file.rate, RATE)
            self._up, self._down, self._rate = RATE // divisor, file.rate // divisor, file.rate
            self._samples = -(-(last - first) * self._up // self._down)
            self._span = first, last

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
        first, last = self._span  # found once: counting the samples of some MP3 files takes decoding them
        place = min(first + low * down, last)
        wanted = max(min(first + high * down, last) - place, 0)
        with open_audio(self._path, 0.0, last / self._rate, self._config, self._inputs) as (file, _, _):
            samples = file.read(place, wanted, self._channel).mean(axis=1)
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
