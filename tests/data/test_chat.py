"""Conversations in rows (SPEC 7): what is learnt, what is whole, and that nothing leaks between or within them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from megatron_lst.cli.data import data_app
from megatron_lst.config.load import dump_yaml
from megatron_lst.config.schema import Config, ModelConfig
from megatron_lst.data.mixture import Mixture, open_mixture
from megatron_lst.data.picture import describe_units
from megatron_lst.data.simulate import simulate
from megatron_lst.data.source import DocumentList, JoinedSets
from megatron_lst.data.stream import RowStream, Stream
from megatron_lst.data.validation import validation_rows
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.patching.row import Chunk, Row, assemble_row, batch_hash
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import IGNORE
from tests.data.conversations import CONVERSATIONS, END, conversation
from tests.data.toy import CODEBOOK, SPEECH_DOCUMENTS, TOKENIZER, make_config
from tests.support.causality import (
    document_violations,
    future_violations,
    literal_blt_map,
    own_unit_map,
    prefix_violations,
)

SOURCES = [
    {"name": "chat", "kind": "chat", "shards": ["unused"], "weight": 1},
    {"name": "speech", "kind": "interleaved", "shards": ["unused"], "weight": 1},
]
MODEL = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.3,
)  # fmt: skip


def config_of(**changes: Any) -> Config:
    return make_config(data__sources=SOURCES[:1], **changes)


def stream_of(config: Config, documents: list[Document] = CONVERSATIONS) -> Stream:
    sets = {"chat": DocumentList(documents, 7), "speech": DocumentList(SPEECH_DOCUMENTS, 7)}
    opened = [JoinedSets([sets[s.name]]) for s in config.data.sources]
    return Stream(Mixture.of(config, config.data.sources, opened, 1), 0)


def chunks_of(row: Row) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(id, tokens, which tokens a label asks for) of each document of a row."""
    asked = np.append(False, row.labels[:-1] != IGNORE)
    found = []
    for ordinal, name in enumerate(row.document_ids):
        if name:
            mine = row.document == ordinal
            found.append((name, row.tokens[mine], asked[mine]))
    return found


def expected_tokens(document: Document, config: Config) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation and which are learnt, span by span, in words of the document alone."""
    v = config.vocabulary
    tokens, learnt = [v.bos], [False]
    heard = False
    for (kind, begin, end), said in zip(document.turn_spans.tolist(), document.turn_learnt.tolist(), strict=True):
        if kind == 2:
            new = [v.speech_marker, *(document.speech_ids[begin:end].reshape(-1).astype(int) + v.text_size).tolist()]
        else:
            new = [*([v.text_marker] if heard else []), *document.token_ids[begin:end].tolist()]
        heard = kind == 2
        tokens += new
        learnt += [bool(said)] * len(new)
    return tokens, learnt


@pytest.mark.parametrize("strategy", ["static", "aligned", "curriculum", "none"])
def test_only_what_the_assistant_says_is_learnt_and_conversations_are_whole(strategy: str) -> None:
    config = config_of(patching__strategy=strategy)
    stream, seen = stream_of(config), []
    for _ in range(10):
        row = stream.next_row()
        row.check(config.vocabulary)
        for name, tokens, asked in chunks_of(row):
            document = next(d for d in CONVERSATIONS if d.id == name)
            wanted, learnt = expected_tokens(document, config)
            assert tokens.tolist() == wanted
            assert asked.tolist() == learnt
            assert tokens[-1] == END, "no EOS: the last token ends the assistant's turn"
            seen.append(name)
        longest = 1 if strategy == "none" else config.patching.size
        assert row.patch_length.max() == longest, "static patches under every strategy"
        assert row.statistics.aligned_documents == 0
    assert len(set(seen)) > 20


def test_a_whole_conversation_learnt_is_another_row() -> None:
    """Control: the labels, and so the hash, depend on who says what."""
    config = config_of()
    one = stream_of(config).next_row()
    all_learnt = [dataclasses.replace(d, turn_learnt=np.ones_like(d.turn_learnt)) for d in CONVERSATIONS]
    two = stream_of(config, all_learnt).next_row()
    assert np.array_equal(one.tokens, two.tokens)
    assert one.hash != two.hash
    assert (two.labels != IGNORE).sum() > (one.labels != IGNORE).sum() > 0


def test_a_conversation_longer_than_a_row_is_skipped_and_counted() -> None:
    config = config_of(data__units=64)
    long = conversation(900, turns=40)
    stream = stream_of(config, [*CONVERSATIONS[:4], long])
    rows = [stream.next_row() for _ in range(12)]
    assert sum(row.statistics.skipped_documents for row in rows) > 0
    assert all(long.id not in row.document_ids for row in rows)
    with pytest.raises(UserError, match="none of the 1 documents.* fits into a row"):
        stream_of(config, [long]).next_row()


def test_a_stream_goes_on_after_any_row() -> None:
    config = make_config(data__sources=SOURCES)
    sets = {"chat": DocumentList(CONVERSATIONS, 7), "speech": DocumentList(SPEECH_DOCUMENTS, 7)}
    mixture = Mixture.of(config, config.data.sources, [JoinedSets([sets[s.name]]) for s in config.data.sources], 2)
    whole = Stream(mixture, 1)
    rows, cursors = [], []
    for _ in range(12):
        rows.append(whole.next_row().hash)
        cursors.append(whole.cursor)
    assert any(cursor["carry"] and cursor["carry"]["source"] == "chat" for cursor in cursors), "a carried conversation"
    for at, cursor in enumerate(cursors[:-1]):
        assert Stream(mixture, 1, cursor).next_row().hash == rows[at + 1]


def chat_row(config: Config) -> tuple[Row, list[Chunk]]:
    """A row of three conversations, and its chunks again."""
    stream = stream_of(config)
    row = stream.next_row()
    while sum(map(bool, row.document_ids)) < 3:
        row = stream.next_row()
    chunks = []
    for ordinal in range(3):
        mine, units = row.document == ordinal, row.unit_document == ordinal
        late = np.zeros(int(units.sum()), bool)
        lengths = row.patch_length[units]
        starts = np.cumsum(lengths) - lengths
        tokens = row.tokens[mine]
        late[:] = config.vocabulary.is_speech(tokens[starts]) & (lengths < config.patching.size)
        chunks.append(Chunk(tokens, lengths, late, row.document_ids[ordinal]))
    again = assemble_row(chunks, sum(len(c.patch_length) for c in chunks), config.vocabulary)
    assert np.array_equal(again.closed, row.closed[: len(again.closed)])
    return again, chunks


@pytest.mark.parametrize("options", [{}, {"text_path": "direct"}, {"decoder_window_units": 4, "cross_rope": True}])
def test_nothing_leaks_within_and_between_conversations(options: dict[str, Any]) -> None:
    """T1b, T3 and T6 on rows of the stream; the wrong maps, and documents that are one, must be caught."""
    config = config_of(patching__strategy="static", patching__size=3)
    v, model = config.vocabulary, dataclasses.replace(MODEL, **options)
    oracle = ReferenceModel(model, v).double()

    def logits(row: Row) -> np.ndarray:
        with torch.no_grad():
            return oracle(row).numpy()

    row, chunks = chat_row(config)
    rng = np.random.default_rng(0)
    assert future_violations(logits, chunks, "static", 3, v, rng, cuts=4) == []
    assert document_violations(logits, row, v, rng) == []
    for chunk in chunks:
        assert prefix_violations(chunk, 3, v) == []
    assert future_violations(logits, chunks, "static", 3, v, np.random.default_rng(0), own_unit_map, cuts=8)
    assert any(prefix_violations(chunk, 3, v, literal_blt_map) for chunk in chunks)
    joined = dataclasses.replace(
        row, document=np.zeros_like(row.document), unit_document=np.zeros_like(row.unit_document)
    )

    def without_documents(other: Row) -> np.ndarray:
        return logits(dataclasses.replace(joined, tokens=other.tokens))

    assert document_violations(without_documents, row, v, rng), "control: one mask for all conversations leaks"


def test_shards_of_conversations(tmp_path: Path) -> None:
    """Schema version 3, read back, verified, opened as chat and as nothing else; batches do not depend on ranks."""
    shards = write_set(tmp_path / "chat", CONVERSATIONS, "chat", TOKENIZER, CODEBOOK, size_limit=4096)
    assert shards.manifest["schema_version"] == 3
    assert verify(tmp_path / "chat") == []
    for found, expected in zip(ShardSet.open(tmp_path / "chat", kind="chat"), CONVERSATIONS, strict=True):
        for name, value in expected.to_sample().items():
            np.testing.assert_array_equal(found.to_sample()[name], value, err_msg=name)
    text_only = [d for d in map(conversation, range(60)) if not d.has_speech]
    assert write_set(tmp_path / "typed", text_only, "chat", TOKENIZER).codec is None

    source = [{"name": "chat", "kind": "chat", "shards": [str(tmp_path / "chat")]}]
    config = make_config(
        data__sources=source, data__validation=source, data__cache=str(tmp_path / "cache"), evaluation__rows=4
    )

    def hashes(ranks: int) -> list[str]:
        streams = [RowStream(config, rank, ranks) for rank in range(ranks)]
        steps = [[row for stream in streams for row in next(stream).rows] for _ in range(3)]
        return [batch_hash([r.hash for r in sorted(rows, key=lambda r: r.index)]) for rows in steps]

    assert hashes(1) == hashes(4)
    held_out = validation_rows(config, config.data.validation[0], 4)
    assert held_out and all((row.labels != IGNORE).any() for row in held_out)
    forecast = simulate(config, 2, 2, steps=10, sample_rows=16)
    assert forecast.sources[0].share == 1.0
    stream = Stream(open_mixture(config, config.data.sources, 1), 0)
    entries = describe_units(stream.next_row(), stream.origins, config.vocabulary)
    assert {(e["kind"], e["learnt"]) for e in entries} >= {
        ("speech", True), ("speech", False), ("text", True), ("text", False),
    }  # fmt: skip

    wrong = dataclasses.replace(config.data.sources[0], kind="interleaved")
    with pytest.raises(UserError, match="its kind is chat, expected speech"):
        open_mixture(config, [wrong], 1)
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(make_config(data__sources=source, data__cache=str(tmp_path / "cache"))))
    result = CliRunner().invoke(data_app, ["inspect", str(path), "--out", str(tmp_path / "row.png")])
    assert result.exit_code == 0, result.output
    assert "end of turn" in result.output
    assert (tmp_path / "row.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turn_spans": [[0, 0, 2], [2, 0, 4], [2, 4, 5], [1, 2, 3]]}, "stretch 2 of kind 2 cannot follow"),
        ({"turn_spans": [[0, 0, 2], [2, 0, 5], [0, 2, 3]]}, "stretch 2 of kind 0 cannot follow"),
        ({"turn_spans": [[1, 0, 2], [2, 0, 5], [1, 2, 3]]}, "stretch 0 of kind 1 cannot follow"),
        ({"turn_spans": [[0, 0, 2], [2, 1, 5], [1, 2, 3]]}, "stretch 1 is \\[1, 5\\), expected it to begin at 0"),
        ({"turn_spans": [[0, 0, 2], [2, 0, 4], [1, 2, 3]]}, "end at 3 pieces and 4 frames"),
        ({"turn_learnt": [0, 0, 0]}, "the assistant says nothing"),
        ({"word_frames": [[0, 1]], "word_tokens": [[0, 3]]}, "words or segments"),
    ],
)  # fmt: skip
def test_spans_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = {"turn_spans": [[0, 0, 2], [2, 0, 5], [1, 2, 3]], "turn_learnt": [0, 1, 1], **change}
    count = len(arrays["turn_spans"])
    arrays["turn_learnt"] = (arrays["turn_learnt"] + [1])[:count]
    arrays.setdefault("turn_chars", [[0, 1]] * count)
    if "word_frames" in arrays:
        arrays |= {"word_chars": [[0, 1]], "word_scores": [1.0]}
    good = {"speech_ids": np.arange(5, dtype=np.int16), "token_ids": np.array([4, 5, 6], np.int32)}
    document = Document(id="d", source="s", text="abc", **good, **{k: np.array(v) for k, v in arrays.items()})
    with pytest.raises(DamagedDataError, match=message):
        document.check()


@pytest.mark.parametrize("depth", [2])
def test_frames_of_several_codes(depth: int) -> None:
    """Patches of whole frames, and a mixture that counts a frame as one."""
    documents = [conversation(i, depth=depth) for i in range(20)]
    half = CODEBOOK.size // depth
    documents = [
        dataclasses.replace(d, speech_ids=(d.speech_ids % half + np.arange(depth) * half).astype(np.int16))
        for d in documents if d.has_speech
    ]  # fmt: skip
    config = config_of(vocabulary__codebooks=[half] * depth, patching__size=4, patching__strategy="static")
    stream = stream_of(config, documents)
    for _ in range(4):
        row = stream.next_row()
        row.check(config.vocabulary)
        raw = 0
        for name, tokens, asked in chunks_of(row):
            wanted, learnt = expected_tokens(next(d for d in documents if d.id == name), config)
            assert (tokens.tolist(), asked.tolist()) == (wanted, learnt)
            raw += len(tokens) - int(config.vocabulary.is_speech(tokens).sum()) // depth * (depth - 1)
        assert row.statistics.tokens_by_source == {"chat": raw}
