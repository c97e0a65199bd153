"""Files of earlier releases are still read. `data_formats` was written by commit 33e46b9, from the same documents."""

from pathlib import Path

import numpy as np

from megatron_lst.documents.format import ARRAYS
from megatron_lst.documents.schema import COLUMNS
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.evaluation.benchmarks import read_prepared
from tests.data.conversations import CONVERSATIONS
from tests.data.toy import speech_document, text_document

OLD = Path(__file__).resolve().parents[1] / "data_formats"


def test_shards_of_schema_1_hold_what_was_put_in() -> None:
    for kind, documents in (
        ("speech", [speech_document(i, words=5) for i in range(3)]),
        ("text", [text_document(i, 6) for i in range(3)]),
    ):
        folder = OLD / f"shards-1-{kind}"
        assert verify(folder) == []
        shards = ShardSet.open(folder, kind=kind)
        assert [d.id for d in shards] == [d.id for d in documents]
        for found, expected in zip(shards, documents, strict=True):
            assert found.has_speech == (kind == "speech")
            for name, value in vars(expected).items():
                np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_shards_of_schema_3_hold_what_was_put_in() -> None:
    """`shards-3-chat` was written when conversations came to shards."""
    assert verify(OLD / "shards-3-chat") == []
    shards = ShardSet.open(OLD / "shards-3-chat", kind="chat")
    assert shards.manifest["schema_version"] == 3
    for found, expected in zip(shards, CONVERSATIONS[:3], strict=True):
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_columns_of_a_shard_keep_their_names() -> None:
    """The column of speech ids is called `units` in files; renaming it needs another schema version."""
    shards = ShardSet.open(OLD / "shards-1-speech")
    assert sorted(shards._index[0]["column_names"]) == sorted(COLUMNS)
    assert "units" in ARRAYS


def test_prepared_tasks_of_format_1() -> None:
    task = read_prepared(OLD / "prepared-1")
    items, refused = task.choice_items("S->S")
    assert refused == {"b": "no audio"}
    assert items[0].prompt[0].ids.tolist() == [1, 2, 3]
    assert [c.ids.tolist() for c in items[0].candidates] == [[1, 2, 3], [4]]
    assert task.choice_items("T->T")[0][0].prompt[0].ids.tolist() == [5, 6]
