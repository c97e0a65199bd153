"""The Megatron model against the dense oracle: same weights, same logits, same loss, same gradient norm."""

from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import Config, RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.patching.row import Row, assemble_row
from megatron_lst.reference import ReferenceModel
from tests.support.causality import random_chunk
from tests.support.single import engine_of, logits_of
from tests.support.toy import toy_config, toy_rows

SCALED = RopeScalingConfig("llama3", factor=4.0, context=16)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "mean pooling": {"pooling": "mean"},
    "three queries and a linear map": {"queries": 3},
    "one query": {"queries": 1},
    "W_u=2": {"decoder_window_units": 2},
    "W_u=512, cross_rope": {"decoder_window_units": 512, "cross_rope": True},
    "double residual": {"double_residual": True},
    "grouped queries, QK-norm": {"qk_norm": True, "kv_heads": 2},
    "one key head": {"kv_heads": 1},
    "biases, wide heads, scaled RoPE, a layer without it": {
        "head_size": 24, "qkv_bias": True, "kv_heads": 2, "no_rope_every": 2, "rope_scaling": SCALED,
    },
    "window 3, two encoder layers": {"window": 3, "encoder_layers": 2},
    "decoder_input=embedding": {"decoder_input": "embedding"},
    "text_path=direct": {"text_path": "direct"},
    "text_path=direct, W_u=3, embedding": {
        "text_path": "direct", "decoder_window_units": 3, "decoder_input": "embedding", "window": 4,
    },
    "text_path=direct, cross_rope, double residual": {
        "text_path": "direct", "decoder_window_units": 200, "cross_rope": True, "double_residual": True, "queries": 3,
    },
    "baseline": {"kind": "baseline"},
    "baseline, grouped queries": {"kind": "baseline", "kv_heads": 2, "qk_norm": True},
}  # fmt: skip


def config_with(options: dict[str, Any], **changes: Any) -> Config:
    return toy_config(**{f"model__{k}": v for k, v in options.items()}, model__init_std=0.1, **changes)


def oracle_with(engine: Any, config: Config) -> ReferenceModel:
    oracle = ReferenceModel(config.model, config.vocabulary)
    oracle.load_state_dict(engine.export_weights())
    return oracle


def oracle_log_probabilities(oracle: ReferenceModel, row: Row) -> torch.Tensor:
    """float64 [targets]."""
    labels = torch.as_tensor(row.labels).long()
    counted = labels >= 0
    return torch.log_softmax(oracle(row), -1)[counted].gather(1, labels[counted][:, None])[:, 0]


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_loss_and_gradient_norm(name: str) -> None:
    """Packed rows of a whole step, against row by row in float64."""
    config = config_with(OPTIONS[name])
    rows = toy_rows(config, config.training.global_batch)
    with engine_of(config) as engine:
        oracle = oracle_with(engine, config).double()
        expected = [oracle_log_probabilities(oracle, row) for row in rows]
        for score, reference, row in zip(engine.score(rows), expected, rows, strict=True):
            counted = row.labels >= 0
            np.testing.assert_allclose(score[counted], reference.detach().numpy(), rtol=1e-5, atol=1e-6)
            assert not score[~counted].any()
        loss = -torch.cat(expected).mean()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in oracle.parameters() if p.grad is not None]).norm().item()
        result = engine.step(rows, lr=1e-3)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    assert result.targets == sum(int((row.labels >= 0).sum()) for row in rows)


@pytest.mark.parametrize("name", ["default", "text_path=direct", "W_u=512, cross_rope", "baseline"])
def test_logits(name: str) -> None:
    config = config_with(OPTIONS[name])
    row = toy_rows(config, 1, seed=3)[0]
    with engine_of(config) as engine:
        found = logits_of(engine, row)
        expected = oracle_with(engine, config).double()(row).detach().numpy()
    counted = row.labels >= 0
    np.testing.assert_allclose(found[counted], expected[counted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["static", "aligned", "lagged"])
def test_every_kind_of_patch(kind: Any) -> None:
    """Aligned segments of any length, closed in time or one token late; documents cut anywhere."""
    config = config_with({}, data__units=48)
    random = np.random.default_rng(5)
    rows = []
    for index in range(3):
        chunks = [random_chunk(random, config.vocabulary, kind, 4, int(random.integers(1, 20))) for _ in range(3)]
        while sum(len(c.patch_length) for c in chunks) > 48:
            chunks.pop()
        rows.append(assemble_row(chunks, 48, config.vocabulary, index))
    with engine_of(config) as engine:
        oracle = oracle_with(engine, config).double()
        for score, row in zip(engine.score(rows), rows, strict=True):
            reference = oracle_log_probabilities(oracle, row).detach().numpy()
            np.testing.assert_allclose(score[row.labels >= 0], reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "hidden", "local_heads", "local_hidden", "queries"),
    [(10, 80, 10, 40, 2), (12, 96, 12, 48, 2), (2, 256, 1, 64, 4), (4, 48, 2, 20, 3)],
    ids=["ten heads", "twelve heads", "wide heads, four queries", "odd widths"],
)
def test_shapes_of_the_configurations(
    heads: int, hidden: int, local_heads: int, local_hidden: int, queries: int
) -> None:
    config = config_with(
        {"heads": heads, "hidden": hidden, "local_heads": local_heads, "local_hidden": local_hidden, "queries": queries}
    )
    rows = toy_rows(config, 2)
    with engine_of(config) as engine:
        oracle = oracle_with(engine, config).double()
        for score, row in zip(engine.score(rows), rows, strict=True):
            reference = oracle_log_probabilities(oracle, row).detach().numpy()
            np.testing.assert_allclose(score[row.labels >= 0], reference, rtol=1e-5, atol=1e-6)


def test_rows_without_speech_and_without_text() -> None:
    """Axes of the direct path may be empty."""
    for text_path in ("patch", "direct"):
        config = config_with({"text_path": text_path})
        vocabulary = config.vocabulary
        from megatron_lst.patching.row import Chunk

        words = np.array([vocabulary.bos, *range(5, 20), vocabulary.eos], np.int32)
        text = Chunk(words, np.ones(17, np.int32), np.zeros(17, bool), "text")
        rows = [assemble_row([text], 32, vocabulary, i) for i in range(2)]
        with engine_of(config) as engine:
            oracle = oracle_with(engine, config).double()
            reference = oracle_log_probabilities(oracle, rows[0]).detach().numpy()
            scores = engine.score(rows)
            np.testing.assert_allclose(scores[1][rows[1].labels >= 0], reference, rtol=1e-5, atol=1e-6)


def test_a_baseline_refuses_patches() -> None:
    config = config_with({"kind": "baseline"})
    rows = toy_rows(config_with({}), 8)
    with engine_of(config) as engine, pytest.raises(UserError, match="units of one token"):
        engine.score(rows)
