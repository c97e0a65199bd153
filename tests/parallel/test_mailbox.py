"""Rank 0 hears what there is, and not a padded copy of it from everybody."""

from typing import Any

import pytest
import torch.distributed as dist

from megatron_lst.training.ranks import Ranks
from tests.support.ranks import RankPool

pytestmark = pytest.mark.multiprocess
LONG = 100_000


def collected(padded: bool) -> tuple[Any, int]:
    """What rank 0 has after two collections, and the bytes of the tensors that it was sent in."""
    ranks, received = Ranks(), [0]
    gather = dist.gather

    def counted(tensor: Any, gather_list: Any = None, **options: Any) -> Any:
        received[0] += sum(part.nbytes for part in gather_list or ())
        return gather(tensor, gather_list=gather_list, **options)

    dist.gather = dist.distributed_c10d.gather = counted  # type: ignore[assignment]
    mine = bytes(LONG) if ranks.rank == 2 else None
    try:
        if padded:
            parts: Any = [None] * 4 if ranks.rank == 0 else None
            dist.gather_object(mine, parts, dst=0)
            return parts, received[0]
        found = ranks.collect(mine)
        return (found, ranks.collect({"rank": ranks.rank} if ranks.rank % 2 else None)), received[0]
    finally:
        dist.gather = dist.distributed_c10d.gather = gather


def test_only_who_has_something_is_heard(ranks: RankPool) -> None:
    """`gather_object` pads (the control)."""
    found = ranks.run(collected, 4, False)
    assert found[0] == (({2: bytes(LONG)}, {1: {"rank": 1}, 3: {"rank": 3}}), 0)
    assert [what for what, _ in found[1:]] == [({}, {})] * 3
    whole, received = ranks.run(collected, 4, True)[0]
    assert whole == [None, None, bytes(LONG), None]
    assert received > 4 * LONG
