"""Rows distributed over data-parallel ranks: balanced, complete, and unharmed by the journey."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lst.engines.microbatches import balanced_groups
from megatron_lst.patching.row import Row, RowStatistics, array_fields
from megatron_lst.patching.serialisation import row_to_bytes, rows_from_bytes
from megatron_lst.training.balancing import RowBalancer
from megatron_lst.training.builders import find_builders
from megatron_lst.training.ranks import Ranks
from tests.support.ranks import RankPool


def _row(index: int, tokens: int, units: int = 5) -> Row:
    """A row whose arrays all differ, so that one taken for another is noticed."""
    draws = np.random.default_rng(index)
    length = {"token": tokens, "unit": units}
    arrays = {f.name: draws.integers(0, 2**31, length[f.axis], dtype=np.int32) for f in array_fields()}
    statistics = RowStatistics({"überall": tokens}, aligned_documents=index)
    return Row(**arrays, index=index, document_ids=(f"sprache/{index}", ""), statistics=statistics)


def _same(one: Row, other: Row) -> bool:
    arrays = all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name)) and getattr(other, f.name).dtype == f.dtype
        for f in array_fields()
    )
    return arrays and (one.index, one.document_ids, one.statistics, one.hash) == (
        other.index,
        other.document_ids,
        other.statistics,
        other.hash,
    )


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=4))
def test_rows_travel_whole(shapes: list[tuple[int, int]]) -> None:
    rows = [_row(i, tokens, units) for i, (tokens, units) in enumerate(shapes)]
    data = np.concatenate([np.empty(0, np.uint8), *map(row_to_bytes, rows)])
    found = rows_from_bytes(data)
    assert len(found) == len(rows) and all(map(_same, rows, found))


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 8).flatmap(lambda g: st.tuples(st.just(g), st.integers(1, 6))), st.randoms())
def test_groups_are_equal_and_no_row_is_lost(shape: tuple[int, int], random: object) -> None:
    groups, each = shape
    lengths = [random.randrange(1, 10_000) for _ in range(groups * each)]  # type: ignore[attr-defined]
    found = balanced_groups(lengths, groups)
    assert sorted(i for group in found for i in group) == list(range(len(lengths)))
    assert {len(group) for group in found} == {each}


def test_the_heaviest_of_many_ranks_carries_little_more_than_the_mean() -> None:
    """128 rows over 32 ranks, of the paper's mixture: text rows of 4,096 tokens, interleaved ones of up to 12,288."""
    lengths = np.random.default_rng(0).choice([4096, 9700, 12288], 128, p=[0.6, 0.3, 0.1])
    loads = np.array([lengths[group].sum() for group in balanced_groups(lengths.tolist(), 32)])
    as_built = lengths.reshape(32, 4).sum(1)
    assert loads.max() / loads.mean() < 1.10
    assert as_built.max() / as_built.mean() > 1.4, "control: what the ranks would train on without balancing"


def _balancer(share: int, shares: int) -> RowBalancer:
    """As if every rank were a machine of its own: each builds, and exchanges with one of each other share."""
    import torch.distributed as dist

    return RowBalancer(share, find_builders(Ranks(), share, shares, f"machine {dist.get_rank()}").balanced_over)


def _balance_over_ranks(shares: list[int], lengths: list[int]) -> list[Row]:
    import torch.distributed as dist

    share = shares[dist.get_rank()]
    size = max(shares) + 1
    each = len(lengths) // size
    rows = [_row(i, lengths[i]) for i in range(share * each, (share + 1) * each)]
    return _balancer(share, size)(rows)


@pytest.mark.parametrize("shares", [[0, 1], [1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 2, 3]])
def test_ranks_exchange_rows(ranks: RankPool, shares: list[int]) -> None:
    """Heavy rows first, hence all on the first rank; model-parallel peers receive the same rows."""
    lengths = [100, 90, 80, 70, 20, 20, 10, 10]
    size = max(shares) + 1
    results = ranks.run(_balance_over_ranks, len(shares), shares, lengths)
    by_share: dict[int, list[Row]] = {}
    for share, rows in zip(shares, results, strict=True):
        first = by_share.setdefault(share, rows)
        assert all(map(_same, first, rows)), "model-parallel peers hold the same rows"
        assert [r.index for r in rows] == sorted(r.index for r in rows)
    everything = sorted((row for rows in by_share.values() for row in rows), key=lambda row: row.index)
    assert len(everything) == len(lengths)
    assert all(_same(row, _row(i, lengths[i])) for i, row in enumerate(everything))
    heaviest = max(sum(len(row.tokens) for row in rows) for rows in by_share.values())
    assert heaviest <= sum(lengths) / size + 30
    assert sum(lengths[: len(lengths) // size]) > heaviest, "control: as built, the first rank would carry more"


def _balance_equal(size: int) -> bool:
    import torch.distributed as dist

    rows = [_row(2 * dist.get_rank() + i, 7) for i in range(2)]
    return all(a is b for a, b in zip(rows, _balancer(dist.get_rank(), size)(rows), strict=True))


def test_nothing_moves_where_it_would_not_help(ranks: RankPool) -> None:
    assert ranks.run(_balance_equal, 2, 2) == [True, True]
