"""A residual that the next norm adds, instead of the layer that it comes from: the same bits."""

from typing import Any

import pytest
import torch

from megatron_lst.config.schema import Config
from megatron_lst.model.layers import Layer
from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows

MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "two encoder layers, double residual": {"model__encoder_layers": 2, "model__double_residual": True},
    "baseline": {"model__kind": "baseline"},
    "recompute full": {"training__recompute": "full"},
    "bf16": {"training__precision": "bf16"},
}
LATER = {"default": 5, "two encoder layers, double residual": 6, "baseline": 3, "recompute full": 2}
"""Layers of four global and two in the decoder whose residual another norm adds; of each other model as by default."""


def curve(config: Config, at_once: bool) -> tuple[int, list[float], dict[str, torch.Tensor]]:
    """Layers that leave their residual to the next norm; losses and norms of two steps; the weights after them.

    at_once: every layer adds its own.
    """
    with engine_of(config) as engine:
        layers = [m for chunk in engine.chunks for m in chunk.modules() if isinstance(m, Layer)]
        for layer in layers:
            layer.adds |= at_once
        steps = [engine.step(toy_rows(config, 8, seed=i), lr=1e-2) for i in range(2)]
        found = [value for step in steps for value in (step.loss, step.grad_norm)]
        return sum(not layer.adds for layer in layers), found, engine.export_weights()


@pytest.mark.parametrize("name", MODELS)
def test_the_next_norm_adds_the_same(name: str) -> None:
    config = toy_config(**MODELS[name])
    later, found, weights = curve(config, at_once=False)
    none, want, expected = curve(config, at_once=True)
    assert (later, none) == (LATER.get(name, LATER["default"]), 0)
    assert found == want
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_a_residual_that_is_lost_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a layer that leaves its residual to another, which does not add it."""
    config = toy_config()
    want = curve(config, at_once=True)[1]
    plain = Layer.forward
    monkeypatch.setattr(Layer, "forward", lambda self, *a, **k: (plain(self, *a, **k)[0], None))
    assert curve(config, at_once=False)[1] != want
