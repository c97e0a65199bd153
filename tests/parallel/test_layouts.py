"""Any layout gives the same curve: ten steps on real processes against the one-process run."""

import dataclasses
from typing import Any

import pytest
import torch

from megatron_lst.config.schema import Config, RopeScalingConfig
from tests.support.ranks import RankPool
from tests.support.runs import train
from tests.support.slow import with_slow
from tests.support.toy import toy_config

pytestmark = pytest.mark.multiprocess

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"parallel__tensor": 2}),
    "TP2+SP": (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    "TP4+SP": (4, {"parallel__tensor": 4, "parallel__sequence": True}),
    "PP2": (2, {"parallel__pipeline": 2}),
    "PP4": (4, {"parallel__pipeline": 4}),
    "PP2 split 1,3": (2, {"parallel__pipeline": 2, "parallel__split": (1, 3)}),
    "PP2 last stage without global layers": (2, {"parallel__pipeline": 2, "parallel__split": (4, 0)}),
    "PP2 interleaved": (2, {"parallel__pipeline": 2, "parallel__virtual": 2}),
    "TP2 PP2+SP": (4, {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True}),
    "DP2": (2, {"engine__distributed_optimizer": False}),
    "DP2 distributed optimizer": (2, {}),
    "DP2 distributed optimizer, no overlap": (2, {"engine__overlap": False}),
    "DP4 distributed optimizer": (4, {}),
    "PP2 DP2": (4, {"parallel__pipeline": 2, "engine__distributed_optimizer": False}),
    "PP2 DP2 distributed optimizer": (4, {"parallel__pipeline": 2}),
    "TP2 DP2+SP distributed optimizer": (4, {"parallel__tensor": 2, "parallel__sequence": True}),
    "PP2 interleaved DP2": (4, {"parallel__pipeline": 2, "parallel__virtual": 2}),
    "loss_chunk=16": (1, {"engine__loss_chunk": 16}),
    "whole logits TP2": (2, {"parallel__tensor": 2, "engine__loss_chunk": 0}),
    "loss_chunk=16 TP2 PP2+SP": (
        4,
        {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True, "engine__loss_chunk": 16},
    ),
    "recompute full": (1, {"training__recompute": "full"}),
    "recompute selective TP2+SP": (
        2,
        {"parallel__tensor": 2, "parallel__sequence": True, "training__recompute": "selective"},
    ),
}
OTHER_MODELS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "decoder_input=embedding PP2": (2, {"model__decoder_input": "embedding"}, {"parallel__pipeline": 2}),
    "decoder_input=embedding TP2 PP2+SP": (
        4,
        {"model__decoder_input": "embedding"},
        {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True},
    ),
    "baseline TP2 PP2+SP": (
        4,
        {"model__kind": "baseline"},
        {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True},
    ),
    "baseline PP2 DP2": (4, {"model__kind": "baseline"}, {"parallel__pipeline": 2}),
    "queries=3 qk_norm kv_heads=2 TP2+SP": (
        2,
        {"model__queries": 3, "model__qk_norm": True, "model__kv_heads": 2},
        {"parallel__tensor": 2, "parallel__sequence": True},
    ),
    "qk_norm kv_heads=2 TP4": (4, {"model__qk_norm": True, "model__kv_heads": 2}, {"parallel__tensor": 4}),
    "biases, wide heads, a layer without RoPE, TP2 PP2+SP": (
        4,
        {"model__qkv_bias": True, "model__head_size": 24, "model__kv_heads": 2, "model__no_rope_every": 3},
        {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True},
    ),
    "biases, a group of keys on two ranks, TP4": (
        4,
        {
            "model__qkv_bias": True,
            "model__kv_heads": 2,
            "model__rope_scaling": RopeScalingConfig("llama3", factor=4.0, context=16),
        },
        {"parallel__tensor": 4},
    ),
    "text_path=direct TP2 PP2+SP": (
        4,
        {"model__text_path": "direct"},
        {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True},
    ),
    "text_path=direct decoder_input=embedding PP2 DP2": (
        4,
        {"model__text_path": "direct", "model__decoder_input": "embedding"},
        {"parallel__pipeline": 2},
    ),
    "two encoder layers, cross_rope, W_u=4, TP2 PP2": (
        4,
        {"model__encoder_layers": 2, "model__cross_rope": True, "model__decoder_window_units": 4},
        {"parallel__tensor": 2, "parallel__pipeline": 2},
    ),
}

_alone: dict[Config, dict[str, Any]] = {}


def alone(ranks: RankPool, config: Config) -> dict[str, Any]:
    """The one-process run of the same model, cached."""
    if config not in _alone:
        _alone[config] = ranks.run(train, 1, config)[0]
    return _alone[config]


def relative(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def compare(results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for result in results:
        assert result["hashes"] == expected["hashes"]
        assert relative(result["losses"], expected["losses"]) < 1e-5
        assert relative(result["norms"], expected["norms"]) < 1e-4
        for kind, reference in zip(result["kinds"], expected["kinds"], strict=True):
            assert kind == pytest.approx(reference, rel=2e-5)
        for score, reference in zip(result["scores"], expected["scores"], strict=True):
            torch.testing.assert_close(score, reference, rtol=2e-3, atol=2e-3)
        assert result["skipped"] == [False] * len(result["losses"])
    same_everywhere: dict[str, str] = {}
    for result in results:
        for key, digest in result["replicas"].items():
            assert same_everywhere.setdefault(key, digest) == digest, f"{key} differs between its replicas"
    writers = [r for r in results if r["rank"][1]]
    assert len(writers) == 1
    assert set(writers[0]["weights"]) == set(expected["weights"])
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(writers[0]["weights"][name], weight, rtol=2e-2, atol=2e-4, msg=name)


@pytest.mark.parametrize("name", with_slow(LAYOUTS, "TP4+SP", "loss_chunk=16 TP2 PP2+SP"))
def test_same_curve_as_one_process(ranks: RankPool, name: str) -> None:
    world, changes = LAYOUTS[name]
    compare(ranks.run(train, world, toy_config(**changes)), alone(ranks, toy_config()))


@pytest.mark.parametrize(
    "name", with_slow(OTHER_MODELS, "decoder_input=embedding PP2", "baseline TP2 PP2+SP", "qk_norm kv_heads=2 TP4")
)
def test_same_curve_of_other_models(ranks: RankPool, name: str) -> None:
    world, model, changes = OTHER_MODELS[name]
    compare(ranks.run(train, world, toy_config(**model, **changes)), alone(ranks, toy_config(**model)))


def test_losses_are_not_equal_by_accident(ranks: RankPool) -> None:
    """Negative control: another seed moves the curve far beyond the tolerance."""
    expected = alone(ranks, toy_config())
    config = toy_config()
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=1))
    assert relative(alone(ranks, other)["losses"], expected["losses"]) > 1e-3


def train_without_summing_replicas(config: Config) -> list[float]:
    """Losses when the copies of the encoder on the first and last stage are left to themselves."""
    from megatron_lst.engines.megatron import gradients

    plain = gradients.replicated_gradients
    gradients.replicated_gradients = lambda model: []
    try:
        return train(config)["losses"]
    finally:
        gradients.replicated_gradients = plain


def train_with_shared_buckets(config: Config) -> list[float]:
    """Losses when replicated parameters share gradient buckets: the two stages then hold different shards of them."""
    from megatron_lst.engines.megatron import engine, gradients
    from megatron_lst.model.model import REPLICATED

    wrap, find = engine.MegatronEngine._wrap, gradients.replicated_gradients

    def wrap_without_marks(self: Any, overlap: bool) -> Any:
        for chunk in self.chunks:
            for parameter in chunk.parameters():
                parameter.shared_embedding = False
        return wrap(self, overlap)

    def find_by_name(model: list[Any]) -> list[torch.Tensor]:
        named = [(n.removeprefix("module."), p) for chunk in model for n, p in chunk.named_parameters()]
        return [p.main_grad for n, p in sorted(named, key=lambda pair: pair[0]) if n.startswith(REPLICATED)]

    engine.MegatronEngine._wrap = wrap_without_marks  # type: ignore[method-assign]
    gradients.replicated_gradients = find_by_name
    try:
        return train(config)["losses"]
    finally:
        engine.MegatronEngine._wrap = wrap  # type: ignore[method-assign]
        gradients.replicated_gradients = find


@pytest.mark.parametrize(
    ("function", "world"), [(train_without_summing_replicas, 2), (train_with_shared_buckets, 4)], ids=["sum", "buckets"]
)
def test_the_replicated_encoder_needs_its_care(ranks: RankPool, function: Any, world: int) -> None:
    """Negative controls of the case that breaks: PP2, and PP2 DP2 with the distributed optimizer."""
    # Without global layers in front, half of the first stage's buffer lies among the replicas, and of the last's not.
    config = toy_config(parallel__pipeline=2, parallel__split=(0, 4))
    losses = ranks.run(function, world, config)[0]
    # The right layouts differ by less than 2e-8.
    assert relative(losses, alone(ranks, toy_config())["losses"]) > 1e-6
