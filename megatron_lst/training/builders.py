"""Which ranks build rows: one on each machine for each data-parallel share that has ranks there (SPEC 6).

All tensor- and pipeline-parallel ranks of a share train on the same rows. Those on one machine take them from one of
them, its builder; a share that spans machines has a builder on each, so that no row crosses the network but to balance.
Ranks find each other through the store of torch.distributed: a few keys each, whatever the number of ranks.
"""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from megatron_lst.data.sharing import RowPublisher, RowSubscriber, can_share
from megatron_lst.machine import local_identity
from megatron_lst.training.ranks import Ranks

SHARES_BALANCED = 64
"""So many shares balance their rows among themselves. Among thousands each builder would connect to each other one, and
a few tens balance as well."""
MEETING_SECONDS = 300.0
"""How long a builder waits for those that take its rows, at the start."""


@dataclass(frozen=True)
class Builders:
    """This rank's place among the builders.

    Attributes:
        count: builders of all shares together.
        balanced_over: world ranks, by share one builder of each of `neighbours`, this one's group for balancing; empty
            where this rank builds nothing.
        gives_to: takes the rows of this rank further; None: no other rank needs them.
        takes_from: where this rank's rows come from; None: it builds them.
    """

    count: int
    balanced_over: list[int] = field(default_factory=list)
    gives_to: RowPublisher | None = None
    takes_from: RowSubscriber | None = None

    def close(self) -> None:
        for held in (self.gives_to, self.takes_from):
            if held is not None:
                held.close()


def neighbours(share: int, shares: int) -> range:
    """The shares with which one balances its rows, itself among them."""
    first = share - share % SHARES_BALANCED
    return range(first, min(first + SHARES_BALANCED, shares))


def find_builders(ranks: Ranks, share: int, shares: int, machine: str | None = None) -> Builders:
    """Agree on who builds; collective over all ranks.

    Where the shares do not have equally many builders (a share that ends in the middle of a machine), and on systems
    without the means, every rank builds for itself.

    Args:
        share, shares: this rank's data-parallel share (`Engine.data_rank`), and how many there are.
        machine: ranks that name the same one share rows; None: as `machine.local_identity` says.

    Raises:
        PeerLost: a rank that gives or takes rows has ended.
    """
    if ranks.world_size == 1:
        return Builders(1, [0])
    machine = machine or local_identity()
    if not can_share():
        machine = f"{machine}-{ranks.rank}"
    meeting = ranks.broadcast_object(secrets.token_hex(8))  # a store may have served an earlier run of this process
    store = dist.PrefixStore(f"rows-{meeting}", dist.distributed_c10d._get_default_store())
    here, publisher = f"{machine}/{share}", None
    if store.add(f"{here}/ranks", 1) == 1:  # the first to come builds
        publisher = RowPublisher()
        store.set(f"{here}/builder", json.dumps([ranks.rank, publisher.address]))
        store.add(f"{share}/builders", 1)
    ranks.barrier()  # from here on all counts stand
    each = store.add(f"{share}/builders", 0)
    if ranks.max(each) != -ranks.max(-each):
        each = ranks.world_size // shares
        if publisher is not None:
            publisher.close()
        return Builders(each * shares, _one_of_each_neighbour(store, ranks.rank, share, shares, each))
    if publisher is None:
        builder, address = json.loads(store.get(f"{here}/builder"))
        return Builders(each * shares, takes_from=RowSubscriber(address, f"rank {builder}", MEETING_SECONDS))
    publisher.accept(store.add(f"{here}/ranks", 0) - 1, MEETING_SECONDS)
    return Builders(each * shares, _one_of_each_neighbour(store, ranks.rank, share, shares, each), gives_to=publisher)


def _one_of_each_neighbour(store: Any, rank: int, share: int, shares: int, each: int) -> list[int]:
    """This builder and one of each of its neighbours, by share: those that stand at its place in the order of ranks.

    Args:
        each: builders of a share; waits until all of them have told.
    """

    def told(keys: list[str]) -> list[int]:
        found = store.multi_get(keys) if store.has_extended_api() else [store.get(key) for key in keys]
        return [int(value) for value in found]

    store.set(f"{share}/builder/{store.add(f'{share}/told', 1)}", str(rank))
    place = sorted(told([f"{share}/builder/{i + 1}" for i in range(each)])).index(rank)
    store.set(f"place {place}/{share}", str(rank))
    return told([f"place {place}/{other}" for other in neighbours(share, shares)])
