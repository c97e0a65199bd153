"""Rows made of stored shards are those of the commit that stored them, 33e46b9: no batch of a run changes."""

from pathlib import Path
from typing import Any

import pytest

from megatron_lst.data.stream import RowStream
from megatron_lst.patching.row import batch_hash
from tests.data.toy import make_config

STORED = Path(__file__).resolve().parents[1] / "data_formats"
HASHES: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "static"}, "3f900420ccabb175"),
    ({"strategy": "none"}, "4658411c4b931378"),
    ({"strategy": "aligned"}, "86c9d91f84ed9ae9"),
    ({"strategy": "aligned", "silence": "merged"}, "1fe71887fe320618"),
    ({"strategy": "aligned", "granularity": "bpe"}, "05581def8caf513a"),
    ({"strategy": "aligned", "max_length": 4, "aligned_lag": 1}, "559d713fa637335e"),
]
"""Patching -> batch_hash of step 4; that each has its own shows that the hash sees how speech is cut."""


@pytest.mark.parametrize(("patching", "expected"), HASHES)
def test_the_batches_of_stored_shards_stay(patching: dict[str, Any], expected: str) -> None:
    sources = [
        {"name": name, "kind": kind, "shards": [str(STORED / f"shards-1-{name}")], "weight": weight}
        for name, kind, weight in (("speech", "interleaved", 1), ("text", "text", 2))
    ]
    data = {"units": 48, "streams": 2, "sources": sources}
    model = {"kind": "baseline"} if patching["strategy"] == "none" else {}
    config = make_config(
        model=model, patching=patching, training={"global_batch": 2, "micro_batch": 1},
        **{f"data__{key}": value for key, value in data.items()},
    )  # fmt: skip
    stream = RowStream(config, 0, 1)
    hashes = [batch_hash([row.hash for row in next(stream).rows]) for _ in range(4)]
    assert hashes[-1] == expected
    assert len({expected for _, expected in HASHES}) == len(HASHES)
