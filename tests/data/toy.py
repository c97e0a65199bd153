"""Small documents, sources and configurations that the tests of the stream share."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.config.load import build, merge
from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import Mixture
from megatron_lst.data.source import DocumentList, JoinedSets
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document

TEXT, SPEECH = 100, 20
TOKENIZER = TokenizerInfo("tok", TEXT, 1, 2, "toy")
CODEBOOK = Codec("toy", (SPEECH,), fingerprint="code")


def speech_document(i: int, words: int | None = None, longest_word: int = 12, pieces: bool = True) -> Document:
    """Words of 2..longest_word frames, gaps between some, a head and a tail of silence."""
    rng = np.random.default_rng(i)
    words = words or int(rng.integers(3, 60))
    gap = rng.integers(0, 5, words) * (rng.random(words) < 0.5)
    length = rng.integers(2, longest_word + 1, words)
    end = np.cumsum(gap + length)
    begin = end - length
    per_word = rng.integers(1, 4, words)
    piece = np.concatenate([[0], np.cumsum(per_word)])
    edges = [np.linspace(b, e, n + 1).astype(np.int32) for b, e, n in zip(begin, end, per_word, strict=True)]
    piece_frames = np.concatenate([np.stack([e[:-1], e[1:]], 1) for e in edges])
    frames = int(end[-1]) + int(rng.integers(0, 4))
    return Document(
        id=f"speech-{i}",
        source="speech",
        text="w " * words,
        speech_ids=rng.integers(0, SPEECH, frames).astype(np.int16),
        token_ids=rng.integers(3, TEXT, int(piece[-1])).astype(np.int32),
        word_frames=np.stack([begin, end], 1).astype(np.int32),
        word_tokens=np.stack([piece[:-1], piece[1:]], 1).astype(np.int32),
        word_chars=np.stack([np.arange(words) * 2, np.arange(words) * 2 + 1], 1).astype(np.int32),
        word_scores=np.ones(words, np.float32),
        piece_frames=piece_frames.astype(np.int32) if pieces else np.zeros((0, 2), np.int32),
    )


def text_document(i: int, pieces: int | None = None) -> Document:
    rng = np.random.default_rng(10_000 + i)
    count = pieces or int(rng.integers(3, 200))
    return Document(
        id=f"text-{i}", source="text", text="x " * count, token_ids=rng.integers(3, TEXT, count).astype(np.int32)
    )


BASE: dict[str, Any] = {
    "vocabulary": {"text_size": TEXT, "speech_size": SPEECH},
    "data": {
        "units": 128,
        "workers": 0,
        "streams": 8,
        "stall_seconds": 200,
        "spans": {"speech_min": 2, "speech_max": 20},
        "sources": [
            {"name": "speech", "kind": "interleaved", "shards": ["unused"], "weight": 1},
            {"name": "text", "kind": "text", "shards": ["unused"], "weight": 2},
        ],
    },
    "training": {"global_batch": 8, "micro_batch": 2, "steps": 30},
    "patching": {"strategy": "curriculum"},
}


def make_config(**changes: Any) -> Config:
    """The base configuration with dotted keys changed, `data__units=64`."""
    values = BASE
    for key, value in changes.items():
        nested: Any = value
        for part in reversed(key.split("__")):
            nested = {part: nested}
        values = merge(values, nested)
    return build(Config, values)


SPEECH_DOCUMENTS = [speech_document(i) for i in range(60)]
TEXT_DOCUMENTS = [text_document(i) for i in range(90)]


def make_mixture(config: Config, streams: int | None = None) -> Mixture:
    sets = {"speech": DocumentList(SPEECH_DOCUMENTS, 7), "text": DocumentList(TEXT_DOCUMENTS, 9)}
    return Mixture.of(
        config,
        config.data.sources,
        [JoinedSets([sets[s.name]]) for s in config.data.sources],
        streams or config.streams,
    )


def on_disk(config: Config, sets: dict[str, Path], **data: Any) -> Config:
    """The configuration with its sources' shards on disk and keys of `data` changed."""
    sources = tuple(dataclasses.replace(s, shards=(str(sets[s.name]),)) for s in config.data.sources)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources, **data))
