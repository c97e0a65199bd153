"""The causality probes on the inference model, with the maps of rows and with its own patch counter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import ModelConfig
from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.patching.row import Row, assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary
from tests.support.causality import (
    document_violations,
    future_violations,
    literal_blt_map,
    own_unit_map,
    random_chunk,
    spec_map,
    token_violations,
)

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
BASE = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.3,
)  # fmt: skip
NEAR = 1e-9
"""Documents of different length have products of different shape: equal within rounding, leaks are larger by far."""


def model_of(**options: object) -> LatentSpeechTextModel:
    config = replace(BASE, **options)  # type: ignore[arg-type]
    oracle = ReferenceModel(config, V).double()
    return LatentSpeechTextModel.from_weights(config, V, oracle.state_dict(), 3)


@pytest.mark.parametrize("options", [{}, {"text_path": "direct"}, {"decoder_window_units": 4, "cross_rope": True}])
def test_nothing_leaks_and_wrong_maps_are_caught(options: dict[str, object]) -> None:
    model = model_of(**options)

    def logits(row: Row) -> np.ndarray:
        return model.row_logits(row).numpy()

    caught: dict[str, set[int]] = {}
    for closing in (spec_map, own_unit_map, literal_blt_map):
        found: set[int] = set()
        for seed in range(4):
            rng = np.random.default_rng(seed)
            chunks = [random_chunk(rng, V, "static", 3, 14) for _ in range(2)]
            found.update(future_violations(logits, chunks, "static", 3, V, rng, closing, cuts=6, tolerance=NEAR))
        caught[closing.__name__] = found
    assert caught["spec_map"] == set()
    assert caught["own_unit_map"]
    assert caught["literal_blt_map"]

    rng = np.random.default_rng(9)
    chunks = [random_chunk(rng, V, "aligned", 3, 14) for _ in range(3)]
    row = assemble_row(chunks, sum(len(c.patch_length) for c in chunks) + 1, V)
    assert token_violations(logits, row, V, rng, tolerance=NEAR) == ([], [])
    assert document_violations(logits, row, V, rng, tolerance=NEAR) == []


@pytest.mark.parametrize("options", [{}, {"text_path": "direct", "pooling": "mean"}, {"kv_heads": 1, "qk_norm": True}])
def test_bfloat16_follows_float64(options: dict[str, object]) -> None:
    exact = model_of(**options)
    half = LatentSpeechTextModel.from_weights(
        exact.config, V, {n: w.bfloat16() for n, w in exact.state_dict().items()}, 3
    )  # fmt: skip
    chunk = random_chunk(np.random.default_rng(0), V, "static", 3, 40)
    row = assemble_row([chunk], len(chunk.patch_length), V)
    assert half.row_logits(row).dtype == torch.bfloat16
    (mine,), (wanted,) = half.score([row]), exact.score([row])
    assert np.abs(mine - wanted).mean() < 0.1 * np.abs(wanted).mean()
