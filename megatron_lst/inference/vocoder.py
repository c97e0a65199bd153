"""Units to a 16 kHz waveform, so that a person can hear what a model says.

`SpectralVocoder` inverts an MFCC codebook: cluster centre -> cepstrum -> mel spectrum -> linear spectrum, which shapes
a pulse-and-noise excitation, refined by Griffin-Lim.  The centres hold no pitch and no speaker, so the voice is flat
and buzzy: intelligible at best, and honest about what the units keep.  `HifiGanVocoder` (`hifigan`) runs a trained unit
vocoder from a checkpoint.  Both are `Vocoder`s.
"""

import json
import math
import wave
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from megatron_lst.errors import UserError
from megatron_lst.files import replacing
from megatron_lst.vocabulary import parse_rate

RATE = 16000
WINDOW, HOP, FFT, MELS, CEPSTRA = 400, 160, 512, 40, 13
LOW, HIGH, EMPHASIS = 40.0, 7600.0, 0.97

# Mean and standard deviation of the 13 cepstra over the embedded corpus (units are normalised over each recording,
# which takes level and colour away; any voice's statistics bring a plausible voice back).
MEAN = np.array([-46.21, -1.84, 1.58, 4.30, -0.96, -2.41, 0.73, -2.65, 0.15, -0.41, 0.35, 0.21, -0.93])
STD = np.array([23.04, 10.77, 5.09, 5.05, 3.88, 3.43, 3.14, 2.84, 2.47, 2.12, 1.84, 1.83, 1.68])


class Vocoder(Protocol):
    """Units -> waveform.

    Attributes:
        rate: samples a second.
    """

    rate: int

    def __call__(self, units: np.ndarray) -> np.ndarray:
        """int [F] codebook ids -> float32 samples within [-1, 1]."""
        ...


def filter_bank() -> np.ndarray:
    """Triangular mel filters, float64 [FFT/2+1, MELS]; those of the codebook's features."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    points = 700 * (10 ** (np.linspace(mel(LOW), mel(HIGH), MELS + 2) / 2595) - 1)
    frequency = np.linspace(0, RATE / 2, FFT // 2 + 1)[:, None]
    low, centre, high = points[:-2], points[1:-1], points[2:]
    return np.clip(np.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre)), 0, None)


def cosine_basis() -> np.ndarray:
    """Orthonormal DCT-II but for its first column's scale, float64 [MELS, CEPSTRA]; the codebook's."""
    row, column = np.arange(MELS)[:, None], np.arange(CEPSTRA)[None]
    return np.cos(math.pi * (row + 0.5) * column / MELS) * math.sqrt(2 / MELS)


def stft(samples: np.ndarray) -> np.ndarray:
    """samples [N] -> complex [N // HOP, FFT/2+1], frames centred on (t + 1/2) HOP."""
    margin = (WINDOW - HOP) // 2
    padded = np.concatenate([np.zeros(margin), samples, np.zeros(WINDOW)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(samples) // HOP]  # [T, WINDOW]
    return np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1], FFT)


def inverse_stft(spectrum: np.ndarray) -> np.ndarray:
    """Least-squares inverse of `stft`: complex [T, FFT/2+1] -> [T * HOP]."""
    window = np.hanning(WINDOW + 1)[:-1]
    margin = (WINDOW - HOP) // 2
    frames = np.fft.irfft(spectrum, FFT)[:, :WINDOW] * window
    length = len(spectrum) * HOP + WINDOW
    total, weight = np.zeros(length), np.zeros(length)
    for t, frame in enumerate(frames):
        total[t * HOP : t * HOP + WINDOW] += frame
        weight[t * HOP : t * HOP + WINDOW] += window**2  # what the window did, twice, is divided out
    return (total / np.maximum(weight, 1e-3))[margin : margin + len(spectrum) * HOP]


class SpectralVocoder:
    """Griffin-Lim from the cepstra of each unit: the centres of an MFCC codebook, or the `sound` of another.

    Args:
        centres: float [S, 39], normalised MFCC and their differences; the first 13 are used.
        pitch: Hz of the pulse train; None: noise alone, a whisper.
        iterations: of Griffin-Lim.
        seed: of the noise.
        frames: of 10 ms that a unit stands for.
    """

    rate = RATE

    def __init__(
        self,
        centres: np.ndarray,
        pitch: float | None = 110.0,
        iterations: int = 30,
        seed: int = 0,
        frames: int = 4,
    ) -> None:
        if centres.ndim != 2 or centres.shape[1] < CEPSTRA:
            raise UserError(f"centres of shape {centres.shape}: expected [entries, at least {CEPSTRA}] of MFCC")
        self.cepstra = centres[:, :CEPSTRA].astype(np.float64) * STD + MEAN
        self.pitch, self.iterations, self.seed, self.frames = pitch, iterations, seed, frames
        basis = cosine_basis()
        basis[:, 0] /= 2  # the first column's squared norm is 2, the others' 1
        self._inverse_basis = basis
        bank = filter_bank()
        # Each frequency takes the level of the filters around it; a filter's output is a sum over its width.
        self._spread = bank / np.maximum(bank.sum(1, keepdims=True), 1e-9)
        self._width = bank.sum(0)

    @classmethod
    def from_codebook(cls, path: Path | str, pitch: float | None = 110.0, iterations: int = 30) -> "SpectralVocoder":
        """From a codebook file as data preparation writes it.

        Raises:
            UserError: not a codebook, or one of other features without `sound`: it needs a trained vocoder.
        """
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {}).get("codebook", "{}"))
                names = file.keys()
                sound = file.get_tensor("sound" if "sound" in names else "centres")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"codebook {path}: cannot be read ({error})") from None
        if (extractor := about.get("extractor")) != "mfcc" and "sound" not in names:
            raise UserError(
                f"codebook {path} is of {extractor} features and does not say what its units sound like; give "
                f"--vocoder, or a codebook that `lst prep codebook` fitted"
            )
        rate = parse_rate(about.get("rate", 25), f"codebook {path}: rate")
        return cls(sound, pitch, iterations, frames=int(100 / rate))

    def envelope(self, units: np.ndarray) -> np.ndarray:
        """Magnitude spectrum of each 10 ms frame, float64 [F x frames, FFT/2+1]."""
        frames = self.cepstra[units]
        # A unit's centre stands in the middle of its frames; between centres the cepstrum moves linearly.
        time = (np.arange(self.frames * len(units)) - (self.frames - 1) / 2) / self.frames
        moving = np.stack([np.interp(time, np.arange(len(units)), c) for c in frames.T], 1)  # [F x frames, 13]
        mel_power = np.exp(np.minimum(moving @ self._inverse_basis.T, 30.0))  # [F x frames, MELS]
        return np.sqrt(mel_power / self._width @ self._spread.T)

    def __call__(self, units: np.ndarray) -> np.ndarray:
        """int [F] -> float32 [160 x frames x F].

        Raises:
            UserError: a unit outside the codebook.
        """
        units = np.asarray(units, np.int64)
        if not len(units):
            return np.zeros(0, np.float32)
        if units.min() < 0 or units.max() >= len(self.cepstra):
            raise UserError(f"units must be in [0, {len(self.cepstra)}), found {units.min()}..{units.max()}")
        envelope = self.envelope(units)
        rng = np.random.default_rng(self.seed)
        source = 0.3 * rng.standard_normal(len(envelope) * HOP)
        if self.pitch is not None:
            source[(np.arange(0, len(source), RATE / self.pitch)).astype(int)] += math.sqrt(RATE / self.pitch)
        excitation = stft(source)
        scale = np.sqrt((np.abs(excitation) ** 2).mean())  # so that the source has unit power
        target = envelope * np.abs(excitation) / scale
        phase = np.exp(1j * np.angle(excitation))
        for _ in range(self.iterations):
            phase = np.exp(1j * np.angle(stft(inverse_stft(target * phase))))
        return finish(inverse_stft(target * phase))


def finish(samples: np.ndarray) -> np.ndarray:
    """Undo the pre-emphasis of the features, and bring the peak to 0.7."""
    # y[n] = x[n] + 0.97 y[n-1], as a truncated impulse response: 0.97^400 is 5e-6.
    response = EMPHASIS ** np.arange(400)
    size = len(samples) + len(response)
    voice = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
    return (0.7 * voice / max(float(np.abs(voice).max()), 1e-9)).astype(np.float32)


def write_wav(path: Path | str, samples: np.ndarray, rate: int = RATE) -> None:
    """16-bit mono WAV; its folder is made."""
    clipped = np.clip(np.asarray(samples, np.float64), -1, 1)
    with replacing(Path(path), "wb") as raw, wave.open(raw, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(clipped * 32767).astype("<i2").tobytes())
