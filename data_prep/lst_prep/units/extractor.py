"""What turns audio into frames of features."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np


class Extractor(Protocol):
    """Features of frames.

    Attributes:
        name: goes into the codebook, so that units of one extractor are never made with another's codebook.
        fingerprint: identity of the extractor, its weights and its settings.
        settings: what of `UnitsConfig`, beside model and rate, decides the features: layer, padding, piece_seconds.
        dim: length of one feature vector.
        rate: frames a second.
    """

    name: str
    fingerprint: str
    settings: dict[str, float]
    dim: int
    rate: Fraction

    def features(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of several pieces of audio.

        Args:
            pieces: float32 [N_i] each, 16 kHz.

        Returns:
            float32 [F_i, dim] each; frame f stands for seconds [f/rate, (f+1)/rate). A piece shorter than a frame may
            give F_i = 0.
        """

    def positions(self, frames: int) -> np.ndarray | None:
        """int [F], at which place of what the model hears at once each frame of a piece stands; None where features
        do not depend on it. A codebook takes away what stands for the place alone (`Codebook.position_mean`)."""


@runtime_checkable
class NeuralExtractor(Extractor, Protocol):
    """An extractor that may run in a lower precision than its makers used.

    Attributes:
        exact: whether it runs in fp32.
    """

    @property
    def exact(self) -> bool: ...

    def in_fp32(self) -> Extractor:
        """The same model in fp32."""
        ...
