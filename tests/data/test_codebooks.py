"""Frames of 8 codes through packing, at many cuts, under every strategy; and what looks at such rows."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from megatron_lst.config.schema import Config, DataConfig, ModelConfig, PatchingConfig, SourceConfig, TrainingConfig
from megatron_lst.data.mixture import Mixture
from megatron_lst.data.patches import measure_patches
from megatron_lst.data.picture import note_tokens
from megatron_lst.data.source import DocumentList, JoinedSets
from megatron_lst.data.stream import Stream
from megatron_lst.documents.schema import Document
from megatron_lst.patching.row import Row
from megatron_lst.vocabulary import Vocabulary

BOOKS = (5, 4, 6, 3, 5, 4, 6, 3)
V = Vocabulary(text_size=60, speech_size=sum(BOOKS), codebooks=BOOKS, frame_rate=12.5, multiple=32)
DEPTH = V.depth


def spoken(number: int, words: int) -> Document:
    """A document whose words have times: 1 to 5 frames each, gaps of 0 to 2; two pieces a word."""
    rng = np.random.default_rng(number)
    length, gap = rng.integers(1, 6, words), rng.integers(0, 3, words)
    end = np.cumsum(length + gap)
    spans = np.arange(words)
    frames = int(end[-1]) + 2
    return Document(
        id=f"d{number}", source="s", text="ab " * words, token_ids=rng.integers(3, 60, 2 * words).astype(np.int32),
        speech_ids=(rng.integers(0, BOOKS, (frames, DEPTH)) + V.offsets).astype(np.int16),
        word_frames=np.stack([end - length, end], 1).astype(np.int32),
        word_tokens=np.stack([2 * spans, 2 * spans + 2], 1).astype(np.int32),
        word_chars=np.stack([3 * spans, 3 * spans + 2], 1).astype(np.int32),
        word_scores=np.zeros(words, np.float32),
    )  # fmt: skip


def config_of(strategy: str, size: int = DEPTH, **patching: Any) -> Config:
    return Config(
        vocabulary=V,
        model=ModelConfig(kind="baseline" if strategy == "none" else "lst"),
        patching=PatchingConfig(strategy=strategy, size=size, **patching),  # type: ignore[arg-type]
        data=DataConfig(units=96 if strategy != "none" else 300, workers=0),
        training=TrainingConfig(steps=100, global_batch=1, micro_batch=1),
    )


def stream_of(config: Config) -> Stream:
    documents = [spoken(i, words) for i, words in enumerate((3, 17, 40, 90, 160, 61, 8))]
    source = SourceConfig("s", "interleaved", ("memory",))
    return Stream(Mixture.of(config, [source], [JoinedSets([DocumentList(documents)])], 1), 0)


def broken_frames(row: Row) -> int:
    """Counted anew, without the vocabulary's own check: speech spans that are not codebooks 0..7, 0..7, ..."""
    owner = np.repeat(np.arange(DEPTH), BOOKS)
    speech = V.is_speech(row.tokens)
    edges = np.flatnonzero(np.diff(np.r_[0, speech.astype(int), 0])).reshape(-1, 2)
    spans = [owner[row.tokens[a:b] - V.text_size] for a, b in edges]
    return sum(not np.array_equal(span, np.arange(len(span)) % DEPTH) or len(span) % DEPTH > 0 for span in spans)


CASES: dict[str, dict[str, Any]] = {
    "static 8": {"strategy": "static"},
    "static 16": {"strategy": "static", "size": 16},
    "static 24": {"strategy": "static", "size": 24},
    "aligned": {"strategy": "aligned", "max_length": 16},
    "aligned, merged, lag": {"strategy": "aligned", "max_length": 32, "silence": "merged", "aligned_lag": 1},
    "mixed": {"strategy": "mixed", "size": 16},
    "curriculum by rows": {"strategy": "curriculum", "size": 16, "draw": "row", "tau1": 20, "tau2": 120},
    "flattened": {"strategy": "none", "size": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_no_cut_falls_inside_a_frame(case: str) -> None:
    stream = stream_of(config_of(**CASES[case]))
    cuts = frames = 0
    for _ in range(160):
        row = stream.next_row()
        row.check(V)
        assert broken_frames(row) == 0
        cuts += stream.cursor["carry"] is not None
        ends = np.cumsum(row.patch_length)[V.is_speech(row.tokens[np.cumsum(row.patch_length) - 1])] - 1
        if case != "flattened":
            assert (V.codebook_of(row.tokens[ends]) == DEPTH - 1).all(), "a patch ends inside a frame"
        frames += int(V.is_speech(row.tokens).sum()) // DEPTH
    assert cuts > 100, "rows that end inside a document"
    assert frames > 1000


def test_patches_of_twelve_break_frames() -> None:
    """The control: what the configuration's check refuses is wrong in rows."""
    stream = stream_of(config_of("static", 12))
    rows = [stream.next_row() for _ in range(20)]
    ends = [row.tokens[np.cumsum(row.patch_length) - 1] for row in rows]
    assert any((V.codebook_of(last[V.is_speech(last)]) != DEPTH - 1).any() for last in ends)


def test_a_broken_frame_is_counted() -> None:
    row = stream_of(config_of("static")).next_row()
    first = int(np.argmax(V.is_speech(row.tokens)))
    tokens = row.tokens.copy()
    tokens[[first, first + 1]] = tokens[[first + 1, first]]
    assert broken_frames(dataclasses.replace(row, tokens=tokens)) == 1


def test_pictures_count_a_word_in_frames_and_colour_tokens() -> None:
    stream = stream_of(config_of("static"))
    for _ in range(8):
        row = stream.next_row()
        notes = note_tokens(row, stream.origins, V)
        speech = V.is_speech(row.tokens)
        assert {notes.kind[t] for t in np.flatnonzero(speech)} <= {"speech", "silence"}
        assert not {notes.kind[t] for t in np.flatnonzero(~speech)} & {"speech", "silence"}
        words = notes.word[speech].reshape(-1, DEPTH)
        assert (words == words[:, :1]).all(), "codes of one frame belong to one word"


def test_patch_lengths_are_told_in_frames() -> None:
    documents = [spoken(1, 30), spoken(2, 50)]
    found = {m.name: m for m in measure_patches(documents, PatchingConfig(size=16, max_length=64))}
    assert found["static 16"].summary()["median"] == 2
    words = np.concatenate([np.diff(d.word_frames, axis=1)[:, 0] for d in documents])
    assert sorted(found["aligned, word, silence separate"].word.tolist()) == sorted(words.tolist())
    untimed = [dataclasses.replace(d, word_frames=d.word_frames[:0]) for d in documents]
    assert [m.name for m in measure_patches(untimed, PatchingConfig(size=8))] == ["static 8"]
