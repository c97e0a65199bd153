"""Scoring the same rows from every rank: distributed over the data-parallel ranks, results shared by all."""

from collections.abc import Sequence

import numpy as np
import torch
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
    scores = engine.score(mine)
    ends = np.cumsum([0, *(len(row.tokens) for row in rows)])
    # Each rank has its own rows' scores and zeros for the others': the sum is exact, and no larger on more ranks.
    flat = torch.zeros(int(ends[-1]), device=engine.device)
    for i, score in zip(range(engine.data_rank * share, len(rows)), scores, strict=False):
        flat[ends[i] : ends[i + 1]] = torch.from_numpy(score)
    dist.all_reduce(flat, group=engine.data_group)
    return np.split(flat.cpu().numpy(), ends[1:-1])
