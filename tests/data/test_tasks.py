"""Adaptation sources (SPEC 9): speech to text and text to speech, learnt on the response alone."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import Mixture
from megatron_lst.data.source import DocumentList, JoinedSets
from megatron_lst.data.stream import Stream
from megatron_lst.errors import UserError
from megatron_lst.patching.row import Row
from megatron_lst.vocabulary import IGNORE
from tests.data.toy import TEXT, make_config, speech_document, text_document


def stream_of(kind: str, documents: list[Any], **changes: Any) -> tuple[Config, Stream]:
    sources = [{"name": "task", "kind": kind, "shards": ["unused"]}]
    config = make_config(data__sources=sources, patching__strategy="static", **changes)
    return config, Stream(Mixture.of(config, config.data.sources, [JoinedSets([DocumentList(documents)])], 1), 0)


def chunks(row: Row) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each document."""
    return [
        (row.tokens[row.document == d].tolist(), row.labels[row.document == d].tolist())
        for d, name in enumerate(row.document_ids)
        if name
    ]


@pytest.mark.parametrize("kind", ["asr", "tts"])
def test_only_the_response_is_learnt_and_no_example_is_cut(kind: str) -> None:
    documents = [speech_document(i, words=4 + i % 5) for i in range(20)]
    config, stream = stream_of(kind, documents)
    v = config.vocabulary
    seen = []
    for _ in range(12):
        row = stream.next_row()
        row.check(v)
        for ordinal, (tokens, labels) in enumerate(chunks(row)):
            document = next(d for d in documents if d.id == row.document_ids[ordinal])
            seen.append(document.id)
            speech = (document.speech_ids.astype(int) + TEXT).tolist()
            text = document.token_ids.tolist()
            prompt, response = (speech, text) if kind == "asr" else (text, speech)
            first, second = (v.speech_marker, v.text_marker) if kind == "asr" else (v.text_marker, v.speech_marker)
            assert tokens == [v.bos, first, *prompt, second, *response, v.eos]
            at = len(prompt) + 2
            assert labels == [IGNORE] * at + [*response, v.eos] + [IGNORE]
    assert len(set(seen)) == 20
    assert seen[:20] != seen[20:40]
    assert np.bincount([seen[:20].count(d.id) for d in documents]).tolist() == [0, 20]


def test_an_example_that_no_row_holds_is_passed_over_and_counted() -> None:
    documents = [speech_document(i, words=5) for i in range(5)] + [speech_document(99, words=300)]
    _, stream = stream_of("asr", documents)
    rows = [stream.next_row() for _ in range(8)]
    assert sum(r.statistics.skipped_documents for r in rows) > 0
    assert all("speech-99" not in r.document_ids for r in rows)


def test_a_source_that_no_row_holds_is_named() -> None:
    _, stream = stream_of("asr", [speech_document(i, words=300) for i in range(3)])
    with pytest.raises(UserError, match="'task': none of the 3 documents that stream 0 has of it fits into a row"):
        stream.next_row()


def test_task_rows_restart_anywhere() -> None:
    documents = [speech_document(i, words=4 + i % 5) for i in range(20)]
    _, stream = stream_of("tts", documents)
    cursors, hashes = [], []
    for _ in range(6):
        cursors.append(stream.cursor)
        hashes.append(stream.next_row().hash)
    for cursor, expected in zip(cursors, hashes, strict=True):
        _, again = stream_of("tts", documents)
        assert Stream(again._mixture, 0, cursor).next_row().hash == expected


@pytest.mark.parametrize("kind", ["asr", "interleaved"])
def test_documents_without_speech_are_refused_by_name(kind: str) -> None:
    _, stream = stream_of(kind, [text_document(3)])
    with pytest.raises(UserError, match=r"text-3.*aligned words"):
        stream.next_row()


def test_an_empty_text_is_refused_by_name() -> None:
    empty = dataclasses.replace(text_document(3), token_ids=np.zeros(0, np.int32))
    _, stream = stream_of("text", [empty])
    with pytest.raises(UserError, match=r"text-3.*empty"):
        stream.next_row()
