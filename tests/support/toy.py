"""Small configurations and random rows for tests."""

import dataclasses
from typing import Any

import numpy as np
from torch import Tensor

from megatron_lst.config.schema import Config, DataConfig, ModelConfig, PatchingConfig, TrainingConfig
from megatron_lst.initialisation import Initialiser
from megatron_lst.patching.chunks import chunk_of_tokens
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.patching.strategies import static_patches
from megatron_lst.vocabulary import Vocabulary


def toy_config(**changes: Any) -> Config:
    """A model of about 60k parameters. `changes`: section__key=value, such as model__layers=2."""
    config = Config(
        vocabulary=Vocabulary(text_size=60, speech_size=50, multiple=128),
        model=ModelConfig(
            hidden=64,
            layers=4,
            heads=4,
            ffn=96,
            local_hidden=32,
            local_heads=4,
            local_ffn=48,
            decoder_layers=2,
            window=16,
        ),
        data=DataConfig(units=32),
        training=TrainingConfig(steps=10, global_batch=8, micro_batch=2, precision="fp32", lr=1e-3),
    )
    if changes.get("model__kind") == "baseline":
        config = dataclasses.replace(config, patching=PatchingConfig(strategy="none"))
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, name = key.split("__")
        sections.setdefault(section, {})[name] = value
    return dataclasses.replace(
        config, **{s: dataclasses.replace(getattr(config, s), **values) for s, values in sections.items()}
    )


def initial_weights(config: Config) -> dict[str, Tensor]:
    """The weights that a run begins with, whole, under canonical names."""
    from megatron_lst.weights import canonical_shapes

    initialiser = Initialiser(config.model, config.training.seed)
    return {name: initialiser.whole(name, shape) for name, shape in canonical_shapes(config).items()}


def toy_rows(config: Config, count: int, seed: int = 0) -> list[Row]:
    """Rows of random interleaved documents; tokens rise by small steps, so that there is something to learn."""
    return [_row(config, np.random.default_rng((seed, i)), i) for i in range(count)]


def _row(config: Config, random: np.random.Generator, index: int) -> Row:
    vocabulary, units = config.vocabulary, config.data.units
    patch = config.patching.size if config.model.kind == "lst" else 1
    chunks: list[Chunk] = []
    used = 0
    while True:
        chunk = _document(vocabulary, random, patch, f"row{index}/{len(chunks)}")
        if used + len(chunk.patch_length) > units:
            return assemble_row(chunks, units, vocabulary, index)
        chunks.append(chunk)
        used += len(chunk.patch_length)


def _document(vocabulary: Vocabulary, random: np.random.Generator, patch: int, name: str) -> Chunk:
    """BOS, then text and speech spans of random length with their markers, EOS; static patches of `patch` tokens."""
    tokens = [vocabulary.bos]
    for _ in range(random.integers(1, 3)):
        start = int(random.integers(3, vocabulary.text_size))
        count = int(random.integers(1, 6))
        tokens += [3 + (start + i) % (vocabulary.text_size - 3) for i in range(count)]
        tokens.append(vocabulary.speech_marker)
        left = int(random.integers(1, 14))
        start = int(random.integers(0, vocabulary.speech_size))
        tokens += [vocabulary.text_size + (start + 2 * i) % vocabulary.speech_size for i in range(left)]
        tokens.append(vocabulary.text_marker)
    tokens.append(vocabulary.eos)
    return chunk_of_tokens(np.array(tokens, np.int32), vocabulary, lambda a, b: static_patches(b - a, patch), name)
