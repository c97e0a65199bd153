"""One rank with another configuration or other code: nobody starts, and both are named."""

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch.distributed as dist

from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.training.resilience.agreement import agree, describe_rank, source_hash


class CountingStore:
    """A store that counts each key's messages."""

    def __init__(self) -> None:
        self._store, self.messages = dist.HashStore(), Counter()

    def set(self, key: str, value: str) -> None:
        self.messages[key] += 1
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        self.messages[key] += 1
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        self.messages[key] += 1
        return self._store.add(key, amount)


def run(told: list[dict[str, str]], store: CountingStore | None = None) -> list[str]:
    store = store or CountingStore()

    def rank(r: int) -> str:
        try:
            agree(store, r, len(told), told[r])
            return ""
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(told)) as pool:
        return list(pool.map(rank, range(len(told))))


def test_equal_ranks_start():
    assert run([describe_rank(Config())] * 4) == [""] * 4


def test_another_config_is_refused_on_every_rank_with_both_named():
    config = Config()
    other = replace(config, training=replace(config.training, lr=0.1))
    said = run([describe_rank(config), describe_rank(config), describe_rank(other)])
    assert len(set(said)) == 1
    host = socket.gethostname()
    assert f"rank 2 on {host} differs from rank 0 on {host}: training.lr is 0.1, not 0.0004" in said[0]


def test_another_code_version_is_refused():
    mine = describe_rank(Config())
    said = run([mine, mine | {"source of megatron_lst": "0" * 16}])
    assert "source of megatron_lst is 0000000000000000, not " + source_hash() in said[1]


def test_a_whole_cluster_of_old_nodes_makes_a_short_message():
    mine = describe_rank(Config())
    said = run([mine] + [mine | {"version of megatron_lst": "0.0.9"}] * 20)
    assert "and 12 more ranks" in said[0]
    assert len(said[0].splitlines()) == 10


def test_a_rank_sends_a_few_messages_however_many_there_are():
    """Three more a rank, and as many keys on 64 ranks as on 8."""
    mine, counted = describe_rank(Config()), []
    for ranks in (8, 64):
        store = CountingStore()
        assert run([mine] * ranks, store) == [""] * ranks
        counted.append((sum(store.messages.values()), len(store.messages)))
    (few, keys), (many, same_keys) = counted
    assert many - few == 3 * 56
    assert keys == same_keys
