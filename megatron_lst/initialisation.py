"""Initial weights, a function of (seed, name, position in the weight) alone (SPEC 8); engines, oracle and warm start.

Element [r, c] of a weight of C columns is made of word r * C + c of the weight's own sequence (`draws.words`). So a
rank draws its own part and nothing else, and every layout begins with the same values, bit for bit.
"""

import math
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from megatron_lst.config.schema import ModelConfig
from megatron_lst.draws import words

_AT_ONCE = 1 << 14
"""Values that are made at a time: few enough to stay in a core's cache."""
_SEGMENT_BITS = 15
"""The table divides each octave of the tail's probability into 2^(23 - 15) segments."""
_SMALLEST, _LARGEST = np.float32(2.0**-33), np.float32(0.5)


class Initialiser:
    """Draws initial weights, whole or in part.

    Norms are 1, biases 0; matrices N(0, init_std), output projections scaled by 1/sqrt(2 * layers of their module).

    Attributes:
        drawn: values drawn so far; norms and biases are not drawn.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self.drawn = 0

    def std(self, name: str) -> float:
        """Standard deviation of a matrix by its canonical name."""
        config = self._config
        if not name.endswith(("o_proj.weight", "down_proj.weight")):
            return config.init_std
        layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
        return config.init_std / math.sqrt(2 * layers.get(name.split(".")[0], config.layers))

    def whole(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole weight, float32 on the CPU."""
        return self.part(name, shape, range(shape[0]), range(shape[-1]))

    def part(self, name: str, shape: tuple[int, ...], rows: range, columns: range) -> Tensor:
        """Some consecutive rows and columns of a weight.

        Args:
            name: canonical.
            shape: of the whole weight. Where it has one axis, `rows` counts and `columns` does not.

        Returns:
            float32 [rows, columns] on the CPU, equal to that part of `whole`.
        """
        if len(shape) == 1:
            return torch.full((len(rows),), 0.0 if name.endswith(".bias") else 1.0)
        self.drawn += len(rows) * len(columns)
        found = np.empty((len(rows), len(columns)), np.float32)
        # Values whose words follow one another: each row of a slice of columns, or all rows together.
        if len(columns) == shape[1]:
            runs, starts = found.reshape(1, -1), [rows.start * shape[1]]
        else:
            runs, starts = found, [row * shape[1] + columns.start for row in rows]
        std, purpose = np.float32(self.std(name)), f"weight {name}"
        together = max(_AT_ONCE // runs.shape[1], 1)
        for run in range(0, len(runs), together):
            for offset in range(0, runs.shape[1], _AT_ONCE):
                target = runs[run : run + together, offset : offset + _AT_ONCE]
                at = [start + offset for start in starts[run : run + together]]  # words of the weight's own sequence
                np.multiply(standard_normal(words(at, target.shape[1], self._seed, purpose)), std, out=target)
        return torch.from_numpy(found)


def standard_normal(random: np.ndarray) -> np.ndarray:
    """One N(0, 1) value of each random word: uint32 -> float32, of the same shape.

    The lowest bit is the sign, the others are the probability p of a larger deviation, between 2^-33 and 1/2; the
    quantile of p is read from a table by linear interpolation, with an error of at most 1e-6. Only operations that
    IEEE 754 rounds in one way are used, so that the values depend neither on the length of an array nor on the machine.
    """
    quantiles, steps, base = _table()
    p = (random >> np.uint32(1)).astype(np.float32)
    p *= np.float32(2.0**-32)
    p += _SMALLEST
    # A float's bits are its octave, then its place in the octave: the upper ones name the segment, the lower ones say
    # where in it p lies.
    bits = p.view(np.uint32)
    segment = (bits >> np.uint32(_SEGMENT_BITS)).astype(np.intp)
    segment -= base
    values = (bits & np.uint32((1 << _SEGMENT_BITS) - 1)).astype(np.float32)  # place within the segment
    values *= np.float32(2.0**-_SEGMENT_BITS)
    values *= steps.take(segment, mode="wrap")
    values += quantiles.take(segment, mode="wrap")
    signs = random << np.uint32(31)  # the lowest bit becomes a float's sign
    np.bitwise_xor(values.view(np.uint32), signs, out=values.view(np.uint32))
    return values


@cache
def _table() -> tuple[np.ndarray, np.ndarray, int]:
    """Quantiles at the beginning of each segment, their growth over it (float32), and the first segment's number."""
    first, last = (int(edge.view(np.uint32)) >> _SEGMENT_BITS for edge in (_SMALLEST, _LARGEST))
    edges = (np.arange(first, last + 2, dtype=np.uint32) << np.uint32(_SEGMENT_BITS)).view(np.float32)
    # Rounded, so that the last digits of another mathematical library do not count.
    quantiles = np.array([round(NormalDist().inv_cdf(float(p)), 7) for p in edges])
    return quantiles[:-1].astype(np.float32), np.diff(quantiles).astype(np.float32), first
