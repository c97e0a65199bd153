"""Counter-based randomness: every draw is a pure function of (seed, purpose, indices), never of what came before.

Only the bit stream of Philox is used, which numpy guarantees to be the same on every version and machine; the
distributions are made here, because numpy's own may change.
"""

from collections.abc import Iterable
from functools import cache

import numpy as np
import xxhash

_WORDS = 8
"""32-bit words that Philox makes of one value of its counter."""


@cache
def number_of(name: str) -> int:
    """64-bit number of a purpose or a source, stable over versions and the order of a configuration."""
    return xxhash.xxh3_64_intdigest(name)


def bits(count: int, seed: int, purpose: str, *indices: int) -> np.ndarray:
    """uint64 [count] random bits keyed by seed, purpose and at most three indices below 2^64."""
    a, b, c = (*indices, 0, 0, 0)[:3]
    generator = np.random.Philox(
        counter=np.array([0, a, b, c], np.uint64), key=np.array([seed % 2**64, number_of(purpose)], np.uint64)
    )
    return np.asarray(generator.random_raw(count))


def uniforms(count: int, seed: int, purpose: str, *indices: int) -> np.ndarray:
    """float64 [count], uniform in [0, 1)."""
    return (bits(count, seed, purpose, *indices) >> np.uint64(11)) * 2.0**-53


def permutation(count: int, seed: int, purpose: str, *indices: int) -> np.ndarray:
    """int64 [count], a random permutation of 0..count-1."""
    return np.argsort(bits(count, seed, purpose, *indices), kind="stable")


def words(starts: Iterable[int], count: int, seed: int, purpose: str) -> np.ndarray:
    """Slices of one endless sequence: uint32 [starts, count], the words `start` to `start + count` of each start.

    Word w is a function of (seed, purpose, w) alone, and a slice costs its own length, wherever it begins. A purpose
    has either such a sequence or `bits`.
    """
    generator = np.random.Philox(key=np.array([seed % 2**64, number_of(purpose)], np.uint64))
    found, at = [], 0
    for start in starts:
        block, skip = divmod(start, _WORDS)
        blocks = -(-(skip + count) // _WORDS)
        generator.advance(block - at)
        raw = np.asarray(generator.random_raw(4 * blocks))
        found.append(raw.astype("<u8", copy=False).view("<u4")[skip : skip + count])
        at = block + blocks
    return np.stack(found)
