"""Every rank runs the same code with the same configuration, or none starts: a node with an old checkout or another
file would train another model's gradients into everyone's weights without a word."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any, Protocol

import megatron_lst
from megatron_lst.config.load import to_plain
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError


class KeyValueStore(Protocol):
    """A key-value store that all ranks reach, such as torch.distributed.TCPStore; `get` waits for the key."""

    def set(self, key: str, value: str) -> Any: ...

    def get(self, key: str) -> bytes: ...

    def add(self, key: str, amount: int) -> int: ...


def source_hash() -> str:
    """Hash over the package's source files: tells an edited checkout from another of the same version."""
    root = Path(megatron_lst.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def describe_rank(config: Config) -> dict[str, str]:
    """What must be the same on every rank: each configuration key, and the versions and sources of the code."""
    import torch

    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = json.dumps(value)

    walk("", to_plain(config))
    flat["version of megatron_lst"] = megatron_lst.__version__
    flat["source of megatron_lst"] = source_hash()
    flat["version of torch"] = torch.__version__
    return flat


def agree(store: KeyValueStore, rank: int, world_size: int, mine: dict[str, str], *, prefix: str = "agreement") -> None:
    """Compare `mine` over all ranks; collective, before anything is built or written.

    Raises:
        UserError: on every rank, naming the ranks, their hosts, and what differs.
    """
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    told = json.dumps({"host": socket.gethostname(), "rank": rank, "values": mine}, sort_keys=True)
    # Rank 0 says what is right, and the others compare: a few messages a rank, and none for rank 0 to look at unless
    # something differs.
    if rank == 0:
        store.set(f"{prefix}/first", digest)
    elif store.get(f"{prefix}/first").decode() != digest:
        store.set(f"{prefix}/other/{store.add(f'{prefix}/others', 1)}", told)
    if store.add(f"{prefix}/arrived", 1) == world_size:
        store.set(f"{prefix}/all", "1")
    if rank == 0:
        store.get(f"{prefix}/all")
        others = [json.loads(store.get(f"{prefix}/other/{i + 1}")) for i in range(store.add(f"{prefix}/others", 0))]
        others.sort(key=lambda other: other["rank"])
        lines = [_difference(json.loads(told), other) for other in others[:8]]
        if len(others) > 8:
            lines.append(f"and {len(others) - 8} more ranks")
        store.set(f"{prefix}/verdict", "\n".join(lines))
    verdict = store.get(f"{prefix}/verdict").decode()
    if verdict:
        raise UserError(f"the ranks do not agree, so none starts:\n{verdict}")


def _difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    keys = [key for key in sorted(a["values"] | b["values"]) if a["values"].get(key) != b["values"].get(key)]
    what = "; ".join(f"{key} is {b['values'].get(key)}, not {a['values'].get(key)}" for key in keys[:5])
    more = f"; and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"rank {b['rank']} on {b['host']} differs from rank {a['rank']} on {a['host']}: {what}{more}"
