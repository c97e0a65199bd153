"""MFCC with deltas: units that need no trained weights. Plain numpy, so that workers start quickly."""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from lst_prep.audio import RATE

_WINDOW, _HOP, _FFT, _MELS, COEFFICIENTS = 400, 160, 512, 40, 13
_LOW, _HIGH = 40.0, 7600.0
_SPEC = "mfcc-1: 25 ms Hann, 10 ms hop, 512 FFT, 40 mels 40-7600 Hz, 13 cepstra, per-piece norm, 2 deltas, mean of {}"
_BLOCK_FRAMES = 6000
"""10 ms frames transformed at once: memory does not grow with the piece."""


@lru_cache(maxsize=1)
def _matrices() -> tuple[np.ndarray, np.ndarray]:
    """Mel filter bank [FFT/2+1, MELS] and orthonormal DCT [MELS, COEFFICIENTS], float32."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    points = 700 * (10 ** (np.linspace(mel(_LOW), mel(_HIGH), _MELS + 2) / 2595) - 1)  # Hz, edges and centres
    frequencies = np.linspace(0, RATE / 2, _FFT // 2 + 1)
    bank = np.zeros((len(frequencies), _MELS))
    for i in range(_MELS):
        low, centre, high = points[i : i + 3]  # of a triangle
        bank[:, i] = np.clip(
            np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)), 0, None
        )
    row, column = np.arange(_MELS)[:, None], np.arange(COEFFICIENTS)[None]
    dct = np.cos(math.pi * (row + 0.5) * column / _MELS) * math.sqrt(2 / _MELS)  # [MELS, COEFFICIENTS]
    return bank.astype(np.float32), dct.astype(np.float32)


def cepstra(samples: np.ndarray) -> np.ndarray:
    """samples float32 [N] -> float32 [T, 13] at 100 Hz, T = N // 160."""
    bank, dct = _matrices()
    count = len(samples) // _HOP
    emphasised = np.concatenate([samples[:1], samples[1:] - np.float32(0.97) * samples[:-1]])
    margin = (_WINDOW - _HOP) // 2  # so that frame t is centred on its 10 ms
    padded = np.concatenate([np.zeros(margin, np.float32), emphasised, np.zeros(_WINDOW, np.float32)])
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    out = np.empty((count, COEFFICIENTS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]  # [T.., WINDOW], a view
    for begin in range(0, count, _BLOCK_FRAMES):
        end = min(begin + _BLOCK_FRAMES, count)
        spectrum = np.fft.rfft(frames[begin:end] * window, _FFT)  # [block, FFT/2+1]
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        out[begin:end] = np.log(power @ bank + np.float32(1e-6)) @ dct
    return out


def _delta(values: np.ndarray) -> np.ndarray:
    p = np.pad(values, ((2, 2), (0, 0)), mode="edge")  # [T + 4, 13]
    return (2 * (p[4:] - p[:-4]) + (p[3:-1] - p[1:-3])) / 10  # slope of a line through five frames


class MfccExtractor:
    """13 MFCC, normalised over the piece, with first and second differences: 39 values a frame."""

    name = "mfcc"
    dim = 3 * COEFFICIENTS

    def __init__(self, rate: Fraction = Fraction(25)) -> None:
        """Args: rate: frames a second, 100 divided by a whole number: a frame is the mean of so many of 10 ms."""
        self.rate, self._mean = rate, int(100 / rate)
        self.settings: dict[str, float] = {}
        self.fingerprint = hashlib.sha256(_SPEC.format(self._mean).encode()).hexdigest()[:16]

    def positions(self, frames: int) -> None:
        """Every frame is heard alike."""

    def features(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [N] each -> float32 [N // (16,000 / rate), 39] each."""
        return [self._features(piece) for piece in pieces]

    def _features(self, samples: np.ndarray) -> np.ndarray:
        frames = len(samples) // (_HOP * self._mean)
        if not frames:
            return np.zeros((0, self.dim), np.float32)
        values = cepstra(samples)
        values = (values - values.mean(0)) / (values.std(0) + np.float32(1e-3))
        first = _delta(values)
        stacked = np.concatenate([values, 2 * first, 2 * _delta(first)], axis=1)  # [T, 39]
        return stacked[: self._mean * frames].reshape(frames, self._mean, -1).mean(1).astype(np.float32)
