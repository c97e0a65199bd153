"""Sound inside a page: short clips as Ogg Vorbis in data URIs, up to a limit for the whole page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LONGEST = 12.0
"""Seconds of a clip; what is longer is cut there."""
MOST = 3_000_000
"""Characters of sound on a page."""
_COMPRESSION = 0.8
"""Of Vorbis: about 30 kbit/s at 16 kHz."""
_LEVELS = 400
"""Points of a clip's loudness."""


@dataclass(frozen=True)
class Sound:
    """A clip.

    Attributes:
        uri: `data:audio/...;base64,...`.
        seconds: its length.
        levels: 0..1, peaks at equal distances.
    """

    uri: str
    seconds: float
    levels: tuple[float, ...]


class Sounds:
    """The clips of one page.

    Attributes:
        characters: of all clips so far.
        left_out: clips that there was no room for.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self.characters = self.left_out = 0

    def add(self, samples: np.ndarray, rate: int) -> Sound | str:
        """A clip of float [N] samples, or why there is none."""
        samples = np.asarray(samples, np.float32)[: round(LONGEST * rate)]
        if not len(samples):
            return "no samples"
        try:
            import soundfile
        except ImportError:
            return "soundfile is not installed (pip install 'megatron-lst[prep]')"
        file = io.BytesIO()
        soundfile.write(file, samples.clip(-1, 1), rate, format="OGG", subtype="VORBIS", compression_level=_COMPRESSION)
        uri = "data:audio/ogg;base64," + base64.b64encode(file.getvalue()).decode()
        if self.characters + len(uri) > self._most:
            self.left_out += 1
            return f"left out: the sound of this page has reached its limit of {self._most / 1e6:g} MB"
        self.characters += len(uri)
        return Sound(uri, len(samples) / rate, _levels(samples))

    def read(self, path: Path) -> Sound | str:
        """A clip of a file, its channels mixed, or why there is none."""
        try:
            import soundfile
        except ImportError:
            return "soundfile is not installed (pip install 'megatron-lst[prep]')"
        try:
            with soundfile.SoundFile(path) as file:
                samples = file.read(round(LONGEST * file.samplerate), dtype="float32", always_2d=True)
                return self.add(samples.mean(axis=1), file.samplerate)
        except (OSError, RuntimeError) as error:
            return f"{path.name} cannot be read ({error})"

    def limit(self) -> str:
        """One sentence on what is embedded."""
        more = f"; {self.left_out} clips had no room" if self.left_out else ""
        return f"Sound is cut after {LONGEST:g} seconds, and a page holds {self._most / 1e6:g} MB of it{more}."


def _levels(samples: np.ndarray) -> tuple[float, ...]:
    count = min(_LEVELS, len(samples))
    edges = np.linspace(0, len(samples), count + 1).astype(int)[:-1]
    peaks = np.maximum.reduceat(np.abs(samples), edges)
    return tuple((peaks / max(float(peaks.max()), 1e-9)).round(3).tolist())
