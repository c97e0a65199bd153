"""Cutting long audio at its quietest places, and batching pieces of equal length."""

from collections.abc import Iterator, Sequence

import numpy as np

from lst_prep.audio import RATE

_STEP = RATE // 50


def quiet_cuts(samples: np.ndarray, longest: float, multiple: int = 1) -> list[int]:
    """Sample positions that cut audio into pieces of at most `longest` seconds, each in a quiet place.

    Args:
        samples: float32 [N].
        longest: seconds; a cut is looked for in the last half of it.
        multiple: positions are rounded down to a multiple of this (samples of one frame).

    Returns:
        [0, ..., N], increasing.
    """
    limit, cuts = int(longest * RATE), [0]
    while len(samples) - cuts[-1] > limit:
        low, high = cuts[-1] + limit // 2, cuts[-1] + limit  # the last half of what a piece may hold
        blocks = samples[low : low + (high - low) // _STEP * _STEP].reshape(-1, _STEP)  # [blocks, 20 ms]
        power = (blocks.astype(np.float64) ** 2).mean(1)
        smooth = np.convolve(power, np.ones(5) / 5, mode="same")  # over 100 ms
        at = low + int(np.argmin(smooth)) * _STEP + _STEP // 2
        cuts.append(max(at // multiple * multiple, cuts[-1] + multiple))  # forwards, whatever the rounding
    return [*cuts, len(samples)]


def equal_length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of items of one length each, at most `budget` samples a batch (at least one item).

    Zero-padding is no option: it changes the output of models that normalise over time.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    for length, members in sorted(by_length.items()):
        size = max(1, budget // max(length, 1))
        for begin in range(0, len(members), size):
            yield members[begin : begin + size]
