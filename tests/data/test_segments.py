"""Documents whose words have no times, speech alone, and frames of several codebooks, in rows."""

import dataclasses
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from megatron_lst.config.checks import check
from megatron_lst.config.load import build, merge
from megatron_lst.config.schema import Config, SegmentConfig, SourceConfig, SpanConfig
from megatron_lst.data.interleaving import SPEECH, TEXT, draws_needed, segment_example, spans_of_segments
from megatron_lst.data.mixture import Mixture
from megatron_lst.data.source import DocumentList, JoinedSets
from megatron_lst.data.stream import Stream
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.schema import Document
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.patching.row import Row

TEXT_SIZE = 100


def segmented(i: int, segments: int, codec: Codec, frames: int = 12, pieces: int = 5) -> Document:
    rng = np.random.default_rng([i, segments])
    codes = np.stack([rng.integers(0, size, segments * frames) for size in codec.codebooks], axis=1)
    edges = np.arange(segments + 1)
    spans = np.stack([edges[:-1], edges[1:]], 1).astype(np.int32)
    return Document(
        id=f"d{i}",
        source="s",
        text="",
        token_ids=rng.integers(3, TEXT_SIZE, segments * pieces).astype(np.int32),
        speech_ids=codec.ids(codes),
        segment_frames=spans * np.int32(frames),
        segment_tokens=spans * np.int32(pieces),
    )


def speech_only(i: int, codec: Codec, frames: int = 40) -> Document:
    document = segmented(i, 1, codec, frames)
    none = np.zeros((0, 2), np.int32)
    return dataclasses.replace(
        document, token_ids=np.zeros(0, np.int32), segment_frames=none, segment_tokens=none, id=f"o{i}"
    )


def config_of(codec: Codec, **changes: Any) -> Config:
    values = {
        "vocabulary": {
            "text_size": TEXT_SIZE,
            "speech_size": codec.size,
            "codebooks": list(codec.codebooks),
            "frame_rate": float(codec.rate),
        },
        "patching": {"strategy": "static", "size": 4 if codec.depth == 1 else codec.depth, "max_length": 32},
        "data": {"units": 64, "workers": 0},
        "training": {"steps": 10, "global_batch": 2, "micro_batch": 1},
    }
    config = build(Config, merge(values, changes))
    check(config)
    return config


def rows_of(config: Config, sources: list[tuple[str, list[Document], float]], count: int) -> list[Row]:
    named = [SourceConfig(kind, kind, ("memory",), weight) for kind, _, weight in sources]  # type: ignore[arg-type]
    sets = [JoinedSets([DocumentList(documents)]) for _, documents, _ in sources]
    stream = Stream(Mixture.of(config, named, sets, 1), 0)
    rows = [stream.next_row() for _ in range(count)]
    for row in rows:
        row.check(config.vocabulary)
    return rows


CODECS = [
    Codec("one", (50,), 25),
    Codec("four", (16, 8, 8, 16), "12.5"),
    Codec("eight", (2048,) * 8, Fraction(25, 2)),
    Codec("wide", (8192,) * 8, Fraction(25, 2)),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name)
@pytest.mark.parametrize("strategy", ["static", "none"])
def test_rows_hold_whole_frames_of_every_document_once(codec: Codec, strategy: str) -> None:
    documents = [segmented(i, 3, codec) for i in range(7)] + [segmented(9, 1, codec, frames=90)]
    changes: dict[str, Any] = {"patching": {"strategy": strategy}}
    if strategy == "none":
        changes |= {"model": {"kind": "baseline"}, "data": {"units": 200}}
    config = config_of(codec, **changes)
    rows = rows_of(config, [("interleaved", documents, 1.0)], 60)
    v = config.vocabulary
    seen = Counter[str]()
    for row in rows:
        for chunk, name in enumerate(row.document_ids):
            tokens = row.tokens[row.document == chunk]
            said = tokens[v.is_speech(tokens)] - v.text_size
            assert len(said) % codec.depth == 0
            assert not codec.check(said.reshape(-1, codec.depth) if codec.depth > 1 else said)
            seen[name] += len(said) // codec.depth
    assert all(seen[d.id] for d in documents)
    if strategy == "static" and codec.depth > 1:
        lengths = np.concatenate([row.patch_length for row in rows])
        assert set(lengths.tolist()) == {1, codec.depth}  # a patch is a frame


def test_a_row_with_a_broken_frame_is_refused() -> None:
    codec = CODECS[1]
    config = config_of(codec)
    row = rows_of(config, [("speech", [speech_only(0, codec)], 1.0)], 1)[0]
    spoken = np.flatnonzero(config.vocabulary.is_speech(row.tokens))
    swapped = row.tokens.copy()
    swapped[spoken[[0, 1]]] = swapped[spoken[[1, 0]]]
    with pytest.raises(DamagedDataError, match="not of codebook 0, whose turn it is"):
        dataclasses.replace(row, tokens=swapped).check(config.vocabulary)
    # control: a vocabulary that knows of one codebook sees nothing
    plain = dataclasses.replace(config.vocabulary, codebooks=())
    dataclasses.replace(row, tokens=swapped).check(plain)


@pytest.mark.parametrize(("size", "longest"), [(12, 32), (8, 12), (4, 32)])
def test_patches_that_would_break_frames_are_refused(size: int, longest: int) -> None:
    with pytest.raises(UserError, match=r"patching\.(size|max_length)=\d+: a frame is 8 tokens"):
        config_of(CODECS[2], patching={"strategy": "curriculum", "size": size, "max_length": longest})
    config_of(CODECS[2], patching={"size": 16, "max_length": 64})


def test_the_cap_of_tokens_follows_the_patch_size() -> None:
    assert config_of(CODECS[0]).token_cap == 3 * 64  # the paper's
    assert config_of(CODECS[2]).token_cap == 6 * 64
    assert config_of(CODECS[2], data={"tokens": 1000}).token_cap == 1000
    documents = [segmented(i, 6, CODECS[2], frames=90, pieces=40) for i in range(8)]
    rows = rows_of(config_of(CODECS[2], data={"units": 512}), [("interleaved", documents, 1.0)], 12)
    pad = config_of(CODECS[2]).vocabulary.pad
    padding = sum(int((row.tokens == pad).sum()) for row in rows) / sum(row.units for row in rows)
    assert padding < 0.1
    # control: at three tokens a unit much of each row stays empty
    old = rows_of(config_of(CODECS[2], data={"units": 512, "tokens": 1536}), [("interleaved", documents, 1.0)], 12)
    assert sum(int((row.tokens == pad).sum()) for row in old) / sum(row.units for row in old) > 0.3


def test_weights_count_frames_whatever_the_codebooks() -> None:
    """The same audio and text with one codebook and with eight: equal shares of frames and pieces, not of tokens."""

    def realised(codec: Codec) -> float:
        config = config_of(codec, data={"units": 256})
        speech = [segmented(i, 3, codec) for i in range(20)]
        text = [Document(id=f"t{i}", source="t", text="", token_ids=np.full(40, 7, np.int32)) for i in range(20)]
        rows = rows_of(config, [("interleaved", speech, 1.0), ("text", text, 2.0)], 80)
        counts = Counter[str]()
        for row in rows:
            counts.update(row.statistics.tokens_by_source)
        return counts["text"] / counts["interleaved"]

    assert realised(CODECS[0]) == pytest.approx(2.0, rel=0.05)
    assert realised(CODECS[2]) == pytest.approx(2.0, rel=0.05)


def test_segments_alternate_whole_and_every_one_occurs_once() -> None:
    codec = CODECS[0]
    document = segmented(1, 9, codec)
    config = SegmentConfig(longest=2)
    spans = spans_of_segments(SpanConfig(), config)
    read = heard = 0
    for seed in range(200):
        draws = np.random.default_rng(seed).random(draws_needed(9, spans))
        found = segment_example(document, spans, config, draws).spans
        kinds = found[:, 0].tolist()
        assert set(kinds) <= {TEXT, SPEECH} and all(a != b for a, b in zip(kinds, kinds[1:], strict=False))
        at = 0
        for kind, begin, end in found.tolist():
            size = 12 if kind == SPEECH else 5
            assert begin == at * size and end % size == 0 and end > begin
            count = (end - begin) // size
            heard, read, at = heard + count * (kind == SPEECH), read + count * (kind == TEXT), at + count
        assert at == 9
    assert 1.3 < read / heard < 3  # text_ratio 2


def test_one_segment_is_drawn_by_the_stated_shares() -> None:
    document = segmented(1, 1, CODECS[0])
    config = SegmentConfig(text_speech=0.5, speech_text=0.2, text=0.2, speech=0.1)
    spans = spans_of_segments(SpanConfig(), config)
    seen = Counter[tuple[int, ...]]()
    for u in np.linspace(0, 1, 1000, endpoint=False):
        seen[tuple(segment_example(document, spans, config, np.full(8, u)).spans[:, 0].tolist())] += 1
    assert seen == {(TEXT, SPEECH): 500, (SPEECH, TEXT): 200, (TEXT,): 200, (SPEECH,): 100}
    with pytest.raises(UserError, match="data.segments.*sum to 1"):
        config_of(CODECS[0], data={"segments": {"text": 0.5}})


def test_draws_do_not_depend_on_anything_but_their_key() -> None:
    codec = CODECS[1]
    documents = [segmented(i, 1 + i % 3, codec) for i in range(9)]
    config = config_of(codec)
    first, again = (rows_of(config, [("interleaved", documents, 1.0)], 20) for _ in range(2))
    assert [r.hash for r in first] == [r.hash for r in again]
    other = rows_of(config_of(codec, data={"seed": 1}), [("interleaved", documents, 1.0)], 20)
    assert [r.hash for r in first] != [r.hash for r in other]


def test_a_stream_goes_on_in_the_middle_of_a_segment() -> None:
    codec = CODECS[2]
    config = config_of(codec)
    documents = [segmented(i, 1, codec, frames=150) for i in range(4)]
    mixture = Mixture.of(
        config, [SourceConfig("s", "interleaved", ("memory",))], [JoinedSets([DocumentList(documents)])], 1
    )
    stream = Stream(mixture, 0)
    rows, cursors = [], []
    for _ in range(12):
        rows.append(stream.next_row().hash)
        cursors.append(stream.cursor)
    assert any(c["carry"] and c["carry"]["at"] > 0 for c in cursors)
    for k in range(11):
        assert Stream(mixture, 0, cursors[k]).next_row().hash == rows[k + 1]


def test_kinds_say_by_document_what_they_lack() -> None:
    codec = CODECS[0]
    with pytest.raises(UserError, match="document 'o0' has no transcript, .* kind interleaved"):
        rows_of(config_of(codec), [("interleaved", [speech_only(0, codec)], 1.0)], 1)
    with pytest.raises(UserError, match="document 'd0' of source 's' has no aligned words; patching.strategy=static"):
        rows_of(config_of(codec, patching={"strategy": "aligned"}), [("interleaved", [segmented(0, 3, codec)], 1.0)], 1)
    text = Document(id="t", source="t", text="", token_ids=np.full(4, 7, np.int32))
    with pytest.raises(UserError, match="document 't' has no speech"):
        rows_of(config_of(codec), [("speech", [text], 1.0)], 1)


@pytest.mark.parametrize("kind", ["speech", "asr", "tts"])
def test_speech_alone_and_tasks_need_no_words(kind: str) -> None:
    codec = CODECS[1]
    config = config_of(codec)
    row = rows_of(config, [(kind, [segmented(i, 1, codec) for i in range(4)], 1.0)], 1)[0]
    v, tokens = config.vocabulary, row.tokens[row.document == 0]
    assert tokens[0] == v.bos and (tokens == v.speech_marker).sum() == 1 and tokens[-1] == v.eos
    assert (tokens == v.text_marker).sum() == (kind != "speech")
