"""The estimate's tiles of attention are those that the kernel visits, and every input says where it is from."""

import numpy as np
import pytest

from benchmarks.expected import AS_EXECUTED, INPUTS, attention_shape, executed, tile_pairs
from megatron_lst.simulation.trace import Operation


def intervals(seed: int, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ones, neither end of which goes back."""
    random = np.random.default_rng(seed)
    start = np.sort(random.integers(0, keys, queries))
    end = np.maximum.accumulate(np.minimum(start + random.integers(0, 40, queries), keys))
    return start, end


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rows", "columns"), [(16, 8), (8, 16), (32, 32)])
def test_pairs_of_tiles(seed: int, rows: int, columns: int) -> None:
    """Against a dense mask: every tile that the loop visits, and which of them hide a key from a query."""
    queries, keys = 100, 120
    start, end = intervals(seed, queries, keys)
    seen = (np.arange(keys) >= start[:, None]) & (np.arange(keys) < end[:, None])
    visited = hidden = 0
    for i in range(0, queries, rows):
        low, high = start[i] // columns * columns, min(end[i : i + rows].max(), keys)
        for j in range(low, high, columns):
            visited += rows * columns
            full = i + rows <= queries and j + columns <= keys and seen[i : i + rows, j : j + columns].all()
            hidden += 0 if full else rows * columns
    found = tile_pairs(start, end, keys, rows, columns, masked_alone=True)
    assert found.all == visited >= seen.sum()
    last = queries // rows * rows  # the kernel also takes a last tile of fewer queries as one that needs no mask
    short = sum(
        rows * columns
        for j in range(0, keys, columns)
        if last < queries and seen[last:, j : j + columns].all() and j + columns <= keys
    )
    assert found.masked == hidden - short
    assert tile_pairs(start, end, keys, rows, columns, masked_alone=False).masked == visited


@pytest.mark.parametrize("keys", [((32, 4, 8), (32, 4, 8)), ((32, 2, 4, 8),)], ids=["apart", "joint"])
def test_keys_of_an_attention(keys: tuple[tuple[int, ...], ...]) -> None:
    """The backward pass, whose first tensor is a gradient, has the keys of the forward pass."""
    name, query = f"lst_kernels.interval_attention{'_joint' if len(keys) == 1 else ''}", (20, 4, 8)
    forward = Operation(name, "forward", (query, *keys), (query,), 0, 0)
    backward = Operation(f"{name}_backward", "backward", (query, query, *keys), (query,), 0, 0)
    assert attention_shape(forward) == attention_shape(backward) == (20, 32, 4, 8)


def test_operators_as_they_are_executed() -> None:
    assert executed("aten.logsumexp").passes == 6
    assert (
        executed("lst_kernels.interval_attention_backward").launches
        > executed("lst_kernels.interval_attention").launches
    )
    assert executed("aten.mm").passes == executed("aten.mm").launches == 1
    assert executed("aten.empty_like").launches == 0
    assert all(value.why for value in AS_EXECUTED.values()), "every factor says why"
    assert all(value.meaning and value.source for value in INPUTS.values())
