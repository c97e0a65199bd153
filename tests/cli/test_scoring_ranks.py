"""Evaluation through an engine on several ranks gives every rank all scores, the same as one process."""

from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from megatron_lst.config.schema import Config
from megatron_lst.engines import open_engine
from megatron_lst.engines.scoring import score_on_all_ranks
from tests.support.ranks import RankPool
from tests.support.runs import score_everywhere
from tests.support.toy import toy_config, toy_rows


@pytest.mark.multiprocess
@pytest.mark.parametrize(("world", "tensor"), [(2, 1), (4, 2)])
def test_scores_are_the_same_on_every_rank_and_layout(ranks: RankPool, world: int, tensor: int) -> None:
    (alone,) = ranks.run(score_everywhere, 1, toy_config(), 5)
    everywhere = ranks.run(score_everywhere, world, toy_config(parallel__tensor=tensor), 5)
    for scores in everywhere:
        assert len(scores) == 5
        for mine, expected in zip(scores, alone, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def received(config: Config, old_way: bool) -> tuple[int, int]:
    """Bytes of the scores, and of the tensors in which this rank got them from the others."""
    rows, got = toy_rows(config, 6), [0]
    # Without the engine's own collectives.
    with open_engine(config) as engine:
        mine = engine.score(rows[engine.data_rank * 3 :][:3])
        engine.score = lambda _: mine  # type: ignore[method-assign]
        reduce, gather = dist.all_reduce, dist.distributed_c10d.all_gather

        def counted_reduce(tensor: Any, *arguments: Any, **options: Any) -> Any:
            got[0] += tensor.nbytes
            return reduce(tensor, *arguments, **options)

        def counted_gather(parts: Any, *arguments: Any, **options: Any) -> Any:
            got[0] += sum(part.nbytes for part in parts)
            return gather(parts, *arguments, **options)

        dist.all_reduce, dist.distributed_c10d.all_gather = counted_reduce, counted_gather  # type: ignore[assignment]
        if old_way:
            dist.all_gather_object([None] * dist.get_world_size(), mine)
        else:
            score_on_all_ranks(engine, rows)
        dist.all_reduce, dist.distributed_c10d.all_gather = reduce, gather
    return 4 * sum(len(row.tokens) for row in rows), got[0]


@pytest.mark.multiprocess
def test_scores_come_once_and_not_from_every_rank(ranks: RankPool) -> None:
    """As objects of the whole world they come once more for each tensor-parallel rank (the control)."""
    for whole, got in ranks.run(received, 4, toy_config(parallel__tensor=2), False):
        assert got == whole
    for whole, got in ranks.run(received, 4, toy_config(parallel__tensor=2), True):
        assert got > 2 * whole
