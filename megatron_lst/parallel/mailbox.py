"""Objects of some of the ranks, brought to rank 0 through the ranks' store.

`torch.distributed.gather_object` pads what every rank has to the longest, on rank 0's device: thousands of times the
list of a rank that writes a file, most of it from ranks that write none; and gloo's connects rank 0 with every rank.
Here rank 0 holds what there is.
"""

import pickle
import secrets
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


class Mailbox:
    """Of all ranks of the job; made at the same point on each.

    Args:
        rank: of the job.
        tell: rank 0's object on every rank; collective.
        total: the sum of a number over all ranks; collective, and returns when all ranks have come.
    """

    def __init__(self, rank: int, tell: Callable[[Any], Any], total: Callable[[int], int]) -> None:
        self._rank, self._tell, self._total = rank, tell, total
        self._name, self._collections = "", 0

    def collect(self, mine: Any) -> dict[int, Any]:
        """What each rank has, on rank 0, by rank; nothing elsewhere. Collective.

        Args:
            mine: any small object that can be pickled; None: nothing, and rank 0 hears nothing.
        """
        if not self._name:  # a store may have served an earlier run: its letters are not ours
            self._name = self._tell(f"mail-{secrets.token_hex(8)}")
        self._collections += 1
        store = dist.PrefixStore(f"{self._name}/{self._collections}", dist.distributed_c10d._get_default_store())
        if mine is not None:
            store.set(str(store.add("letters", 1)), pickle.dumps((self._rank, mine)))  # type: ignore[arg-type]  # bytes are taken
        letters = self._total(int(mine is not None))
        found = {}
        for number in range(1, letters + 1) if self._rank == 0 else ():
            rank, theirs = pickle.loads(store.get(str(number)))
            found[rank] = theirs
            store.delete_key(str(number))
        return dict(sorted(found.items()))
