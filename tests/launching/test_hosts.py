"""Lists of hosts: what is meant is what is started, and no host is made up."""

import time

import pytest

from megatron_lst.errors import UserError
from megatron_lst.launching.hosts import expand_hosts

LISTS = [
    ("node-a", ["node-a"]),
    ("node-a,node-b", ["node-a", "node-b"]),
    ("node-a, node-b ", ["node-a", "node-b"]),
    ("node[01-04]", ["node01", "node02", "node03", "node04"]),
    ("node[1-3]", ["node1", "node2", "node3"]),
    ("node[8-11]", ["node8", "node9", "node10", "node11"]),
    ("node[008-011]", ["node008", "node009", "node010", "node011"]),
    ("n[1,3-4,10],login", ["n1", "n3", "n4", "n10", "login"]),
    ("rack[1-2]-n[01-02]", ["rack1-n01", "rack1-n02", "rack2-n01", "rack2-n02"]),
    ("gpu[1-2].cluster.org", ["gpu1.cluster.org", "gpu2.cluster.org"]),
    ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
    ("fd00::1,10.0.0.1", ["fd00::1", "10.0.0.1"]),
    ("node[7]", ["node7"]),
]


@pytest.mark.parametrize(("text", "hosts"), LISTS)
def test_lists_as_people_write_them(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    "|,|a,,b|a,|a b|a;id|$(id)|a,a|n[1-2],n2|n[|n]|n[1-2|n[]|n[a-b]|n[2-1]|n[1-2]]|[[1]]|-n|n_|n[1--2]|a/b|n[1-2:1]"
    "|ü|n[1-99999999]|n[1-1000][1-1000]".split("|"),
)
def test_what_names_no_hosts_is_refused(text: str) -> None:
    begin = time.monotonic()
    with pytest.raises(UserError, match="--hosts"):
        expand_hosts(text)
    assert time.monotonic() - begin < 2
