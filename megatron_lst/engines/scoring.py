"""Scoring the same rows from every rank: distributed over the data-parallel ranks, results shared by all."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_lst.engines.base import Engine
from megatron_lst.patching.row import Row


def score_on_all_ranks(engine: Engine, rows: Sequence[Row]) -> list[np.ndarray]:
    """`Engine.score` of rows that every rank holds; collective.

    Returns:
        float32 [N] for each row, on every rank.
    """
    if engine.data_size == 1:
        return engine.score(rows)
    share = -(-len(rows) // engine.data_size)
    # Every rank scores the same number of rows: the last ones repeat a row.
    mine = [rows[min(i, len(rows) - 1)] for i in range(engine.data_rank * share, (engine.data_rank + 1) * share)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (engine.data_rank, engine.score(mine)))
    by_rank = dict(gathered)
    return [by_rank[i // share][i % share] for i in range(len(rows))]
