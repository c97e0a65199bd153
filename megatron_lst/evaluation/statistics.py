"""Intervals and paired tests: most gaps in the paper's story-cloze columns are within two standard errors."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Attributes:
        low, high: 2.5 and 97.5 percentiles of resampled means.
        count: items.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def standard_error(self) -> float:
        return (self.high - self.low) / (2 * 1.96)


def bootstrap(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over items. values: [n], n >= 1."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    # Multinomial counts instead of gathered items: n-independent memory for a block of resamples.
    means = np.empty(resamples)
    for begin in range(0, resamples, 100):
        size = min(100, resamples - begin)
        weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=size)  # [size, n]
        means[begin : begin + size] = weights @ values / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), len(values))


@dataclass(frozen=True)
class Paired:
    """Two models on the same items.

    Attributes:
        difference: interval of mean(b - a).
        wins, losses: items where b scores higher, lower.
        p_value: two-sided exact sign test over those items (McNemar's for right/wrong); 1 where there are none.
    """

    difference: Interval
    wins: int
    losses: int
    p_value: float


def paired(a: np.ndarray, b: np.ndarray, resamples: int = 2000, seed: int = 0) -> Paired:
    """Compare two models item by item. a, b: [n], the same items in the same order."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items: a paired test needs the same items")
    gap = np.asarray(b, np.float64) - np.asarray(a, np.float64)  # [n]
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    return Paired(bootstrap(gap, resamples, seed), wins, losses, sign_test(wins, losses))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial test of wins against losses at 1/2."""
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    log_half = n * math.log(0.5)
    tail = sum(
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half) for i in range(k + 1)
    )
    return min(1.0, 2 * tail)
