"""The causality map c(t): which units a token may know of (SPEC 4). One function; every model and generation use it.

Proof that nothing leaks.  Write first(j), last(j) for the extreme tokens of unit j.  A unit *closes* at the first
token at which a reader of the prefix alone can know that the unit is complete:

    close(j) = last(j)        non-speech unit; static patch with p tokens; aligned segment (its boundary is side
                              information of the aligner)
    close(j) = last(j) + 1    static patch shorter than p: only the following non-speech token ends it
    c(t) = max{ j : close(j) <= t }

The encoder state H_t depends on x_{<=t}.  The patch embedding e_j depends on H_s with u(s) = j, hence on
x_{<=last(j)}, and so does g_j, which depends on e_{<=j}.  Decoder states at t read decoder states s <= t and g_j
with j <= c(s), for which last(j) <= close(j) <= s <= t.  By induction over layers logits_t depend on x_{<=t}.  The
map itself is computable from the prefix, so it adds nothing.  BLT's map u(t+1) - 1 differs exactly at the last
token of truncated static patches, and leaks there: it tells that a marker follows.
"""

import numpy as np


def closed_units(patch_length: np.ndarray, closes_late: np.ndarray) -> np.ndarray:
    """c(t) for every token of a sequence of units.

    Args:
        patch_length: int [U], tokens of each unit, all >= 1; N = sum.
        closes_late: bool [U], close(j) = last(j) + 1 instead of last(j).

    Returns:
        int32 [N], index of the newest unit that is closed at each token; -1 where none is.
    """
    close = np.cumsum(patch_length) - 1 + closes_late  # [U], close(j); the last one may lie behind the sequence
    tokens = int(patch_length.sum())
    # close is non-decreasing, for every unit has a token: count the units that closed up to each token.
    closed_per_token = np.bincount(close[close < tokens], minlength=tokens)  # [N], units that close at each token
    return (np.cumsum(closed_per_token) - 1).astype(np.int32)
