"""SPEC 4 on the Megatron model: T1, T1b, T6, and the wrong closing maps that the probes must catch (T5)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import Config
from megatron_lst.patching.row import Chunk, Row, assemble_row
from tests.support.causality import (
    document_violations,
    future_violations,
    literal_blt_map,
    own_unit_map,
    random_chunk,
    same_shape,
    token_violations,
)
from tests.support.single import engine_of, logits_of
from tests.support.toy import toy_config

SIZE = 4
TOLERANCE = 1e-5
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "W_u=5, cross_rope": {"model__decoder_window_units": 5, "model__cross_rope": True},
    "own embedding, two encoder layers": {"model__decoder_input": "embedding", "model__encoder_layers": 2},
    "direct text": {"model__text_path": "direct", "model__decoder_window_units": 2},
}


def small_config(**changes: Any) -> Config:
    return toy_config(model__layers=2, model__init_std=0.2, model__window=6, **changes)


def caller(engine: Any) -> Callable[[Row], np.ndarray]:
    return lambda row: logits_of(engine, row)


def chunks_of(config: Config, random: np.random.Generator, kind: Any) -> list[Chunk]:
    return [random_chunk(random, config.vocabulary, kind, SIZE, int(random.integers(4, 16))) for _ in range(3)]


@pytest.mark.parametrize("kind", ["static", "aligned", "lagged"])
@pytest.mark.parametrize("option", OPTIONS)
def test_the_future_is_not_read(option: str, kind: Any) -> None:
    """T1b: everything after tau is rewritten and the maps recomputed."""
    config = small_config(**OPTIONS[option])
    random = np.random.default_rng(11)
    with engine_of(config) as engine:
        found = future_violations(
            caller(engine), chunks_of(config, random, kind), kind, SIZE, config.vocabulary, random, tolerance=TOLERANCE
        )
    assert found == []


@pytest.mark.parametrize("closing", [own_unit_map, literal_blt_map])
def test_wrong_maps_are_caught(closing: Any) -> None:
    """Negative control: c = u and BLT's literal map leak under T1b."""
    config = small_config()
    random = np.random.default_rng(2)
    found: list[int] = []
    with engine_of(config) as engine:
        for _ in range(6):
            found += future_violations(
                caller(engine), chunks_of(config, random, "static"), "static", SIZE, config.vocabulary, random,
                closing=closing, cuts=8, tolerance=TOLERANCE,
            )  # fmt: skip
            if found:
                break
    assert found


def test_one_token_changes_nothing_before_it() -> None:
    """T1 with fixed maps, and c = u must fail it."""
    config = small_config()
    random = np.random.default_rng(3)
    chunks = chunks_of(config, random, "static")
    row = same_shape([chunks, chunks], SIZE, config.vocabulary)[0]
    with engine_of(config) as engine:
        before, unchanged = token_violations(
            caller(engine), row, config.vocabulary, random, tries=10, tolerance=TOLERANCE
        )
        assert before == []
        assert unchanged == []
        caught, _ = token_violations(
            caller(engine), row, config.vocabulary, np.random.default_rng(4), closing=own_unit_map, tries=30,
            tolerance=TOLERANCE,
        )  # fmt: skip
    assert caught


def test_documents_do_not_see_each_other() -> None:
    """T6: editing one packed document leaves the others unchanged."""
    config = small_config(model__decoder_window_units=6)
    random = np.random.default_rng(6)
    with engine_of(config) as engine:
        row = assemble_row(chunks_of(config, random, "static"), 64, config.vocabulary)
        assert document_violations(caller(engine), row, config.vocabulary, random, tolerance=TOLERANCE) == []
        joined = dataclasses.replace(
            row, document=np.zeros_like(row.document), unit_document=np.zeros_like(row.unit_document)
        )
        without_documents = logits_of(engine, joined)
        assert np.abs(without_documents - logits_of(engine, row)).max() > 1e-3, "documents make a difference at all"


def token_gradients(engine: Any, row: Row, t: int) -> np.ndarray:
    """Norm of d(loss of token t) / d(embedding of token s), for every s; exactly 0 where nothing flows."""
    from tests.support.single import make_batch

    captured: list[torch.Tensor] = []
    chunk = engine.chunks[0]
    hook = chunk.embedding.register_forward_hook(lambda module, inputs, output: captured.append(output))
    labelled = dataclasses.replace(row, labels=np.full_like(row.labels, engine.config.vocabulary.bos))
    try:
        losses = chunk(make_batch([labelled], engine.config, engine.device))
        (gradient,) = torch.autograd.grad(losses[t], captured)
    finally:
        hook.remove()
    return gradient.reshape(-1, gradient.shape[-1]).norm(dim=-1).numpy()[: len(row.tokens)]


@pytest.mark.parametrize("kind", ["static", "aligned"])
def test_gradients_reach_exactly_the_known_past(kind: Any) -> None:
    """T2. A window of 1 ablates local self-attention: beyond the token itself all signal came through closed units."""
    config = small_config()
    random = np.random.default_rng(5)
    row = assemble_row(chunks_of(config, random, kind), config.data.units, config.vocabulary)
    positions = random.permutation(np.flatnonzero(row.tokens != config.vocabulary.pad))[:4].tolist()
    index = np.arange(len(row.tokens))
    with engine_of(config) as engine:
        for t in positions:
            assert (token_gradients(engine, row, t)[index > t] == 0).all()
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, window=1))
    leaks = dataclasses.replace(row, closed=own_unit_map(row))
    with engine_of(narrow) as engine:
        for t in positions:
            known = (row.unit <= row.closed[t]) & (row.document == row.document[t])
            gradient = token_gradients(engine, row, t)
            assert (gradient[known] > 0).all(), "a closed unit gives no signal"
            assert (gradient[~known & (index != t)] == 0).all()
        # the control: c = u reads tokens of the future inside an open patch
        inside = next(t for t in index if row.unit[t] == row.unit[t + 1])
        assert (token_gradients(engine, leaks, inside)[index > inside] > 0).any()
