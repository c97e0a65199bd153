"""The inference model against the oracle, and cached against uncached (SPEC 4, T4)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.inputs import PatchCounter
from megatron_lst.patching.row import Row, assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import IGNORE, Vocabulary
from tests.inference.row_by_row import RowByRow
from tests.support.causality import Kind, random_chunk

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
BASE = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.3,
)  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "mean, three queries, linear": {"pooling": "mean", "queries": 3},
    "wide unit window": {"decoder_window_units": 512, "cross_rope": True},
    "two units, double residual": {"decoder_window_units": 2, "double_residual": True, "encoder_layers": 2},
    "own decoder embedding": {"decoder_input": "embedding", "qk_norm": True, "kv_heads": 1},
    "biases, wide heads, scaled RoPE, a layer without it": {
        "qkv_bias": True,
        "head_size": 12,
        "kv_heads": 1,
        "no_rope_every": 2,
        "rope_scaling": RopeScalingConfig("llama3", factor=4.0, context=16),
    },
    "direct text": {"text_path": "direct", "decoder_window_units": 3},
    "direct text, own embedding": {"text_path": "direct", "decoder_input": "embedding"},
    "baseline": {"kind": "baseline", "kv_heads": 1, "qk_norm": True},
}
SIZE = 3
property_test = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))


def pair(option: str) -> tuple[ReferenceModel, LatentSpeechTextModel]:
    """The oracle and the inference model with the same float64 weights; norms away from 1."""
    config = replace(BASE, **OPTIONS[option])  # type: ignore[arg-type]
    oracle = ReferenceModel(config, V).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in oracle.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    size = 1 if config.kind == "baseline" else SIZE
    return oracle, LatentSpeechTextModel.from_weights(config, V, oracle.state_dict(), size)


def random_row(rng: np.random.Generator, kind: Kind, size: int) -> Row:
    chunks = [random_chunk(rng, V, kind, size, int(rng.integers(1, 24))) for _ in range(3)]
    return assemble_row(chunks, sum(len(c.patch_length) for c in chunks) + 2, V)


@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["static", "aligned", "lagged"]))
def test_equals_the_oracle_on_packed_rows(option: str, seed: int, kind: Kind) -> None:
    oracle, model = pair(option)
    row = random_row(np.random.default_rng(seed), kind if option != "baseline" else "static", model.patch_size)
    with torch.no_grad():
        expected = oracle(row)
    logits = model.row_logits(row)
    real = torch.from_numpy(row.tokens != V.pad)
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-9, atol=1e-10)
    scores = model.score([row, row], tokens_at_once=9, head_rows=5)
    counted = row.labels != IGNORE
    wanted = expected.log_softmax(-1)[np.flatnonzero(counted), row.labels[counted].astype(np.int64)]
    for one in scores:
        assert one.dtype == np.float32
        assert (one[~counted] == 0).all()
        np.testing.assert_allclose(one[counted], wanted, rtol=2e-6, atol=1e-6)


def incremental(model: LatentSpeechTextModel, tokens: list[int], steps: list[int]) -> torch.Tensor:
    """Logits of every token, fed in pieces of the given sizes."""
    cache, counter, rows = Cache(model.config, 1), PatchCounter(V, model.patch_size), []
    begin = 0
    for step in steps:
        part = counter.add(tokens[begin : begin + step])
        rows.append(model.advance([part], cache).logits(np.arange(len(part.tokens))))
        begin += step
    assert begin == len(tokens)
    return torch.cat(rows)


@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=st.integers(0, 2**31))
def test_t4_cached_equals_uncached_bit_for_bit_row_by_row(option: str, seed: int) -> None:
    """Uncached: each position's logits from a fresh pass over its whole prefix."""
    rng = np.random.default_rng(seed)
    _, model = pair(option)
    tokens = random_chunk(rng, V, "static", model.patch_size, 14).tokens.tolist()
    with RowByRow() as mode:
        cached = incremental(model, tokens, [1] * len(tokens))
        for t in rng.permutation(len(tokens))[:2].tolist():
            uncached = incremental(model, tokens[: t + 1], [t + 1])
            assert torch.equal(uncached, cached[: t + 1])
    used = {"linear", "rms_norm", "silu", "cos", "sin", "scaled_dot_product_attention"}
    assert set(mode.calls) == used, "everything whose bits may depend on its neighbours ran row by row"
    torch.testing.assert_close(cached, incremental(model, tokens, [1] * len(tokens)), rtol=1e-10, atol=1e-11)


def test_t4_bits_differ_without_row_by_row() -> None:
    """The negative control of the last test: batched products do change bits, and it would see that."""
    _, model = pair("default")
    rng = np.random.default_rng(0)
    different = 0
    for _ in range(6):
        tokens = random_chunk(rng, V, "static", SIZE, 24).tokens.tolist()
        cached = incremental(model, tokens, [1] * len(tokens))
        different += not torch.equal(incremental(model, tokens, [len(tokens)]), cached)
    assert different


@pytest.mark.parametrize("option", OPTIONS)
@property_test
@given(seed=st.integers(0, 2**31))
def test_t4_batched_arithmetic_agrees_within_rounding(option: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    oracle, model = pair(option)
    chunk = random_chunk(rng, V, "static", model.patch_size, 40)
    tokens = chunk.tokens.tolist()
    with torch.no_grad():
        whole = oracle(assemble_row([chunk], len(chunk.patch_length), V))
    one_by_one = incremental(model, tokens, [1] * len(tokens))
    cut = int(rng.integers(0, len(tokens)))
    prefill = incremental(model, tokens, [cut, len(tokens) - cut] if cut else [len(tokens)])
    for result in (one_by_one, prefill):
        torch.testing.assert_close(result, whole, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_batch_of_different_lengths_equals_each_alone(option: str) -> None:
    rng = np.random.default_rng(3)
    _, model = pair(option)
    documents = [random_chunk(rng, V, "static", model.patch_size, n).tokens.tolist() for n in (25, 9, 33)]
    alone = [incremental(model, d, [1] * len(d)) for d in documents]
    cache, counters = Cache(model.config, 3), model.counters(3)
    collected: list[list[torch.Tensor]] = [[], [], []]
    begin = [0, 0, 0]
    while any(b < len(d) for b, d in zip(begin, documents, strict=True)):
        steps = [min(int(rng.integers(0, 3)), len(d) - b) for b, d in zip(begin, documents, strict=True)]
        inputs = [c.add(d[b : b + s]) for c, d, b, s in zip(counters, documents, begin, steps, strict=True)]
        if not sum(steps):
            continue
        logits = model.advance(inputs, cache).logits(np.arange(sum(steps)))
        for i, mine in enumerate(logits.split(steps)):
            collected[i].append(mine)
        begin = [b + s for b, s in zip(begin, steps, strict=True)]
    for i in range(3):
        torch.testing.assert_close(torch.cat(collected[i]), alone[i], rtol=1e-10, atol=1e-11)


def test_t4_catches_units_that_close_at_another_token() -> None:
    _, model = pair("default")
    tokens = [V.bos, V.speech_marker] + [V.text_size + i for i in range(7)] + [V.text_marker]
    right = incremental(model, tokens, [len(tokens)])
    model.patch_size = SIZE + 1
    wrong = incremental(model, tokens, [1] * len(tokens))
    assert torch.allclose(right[:4], wrong[:4])
    assert not torch.allclose(right, wrong)


def test_global_steps_are_units_and_caches_are_bounded() -> None:
    _, model = pair("default")
    cache, counter = Cache(model.config, 1), PatchCounter(V, SIZE)
    passed: list[int] = []
    model.global_transformer.register_forward_hook(lambda module, given, out: passed.append(len(out)))
    tokens = [V.bos, V.speech_marker] + [V.text_size] * 300
    for token in tokens:
        model.advance([counter.add([token])], cache)
    assert cache.units == [2 + 100] == [counter.units]
    assert passed == [1] * (2 + 100)
    held = cache.allocated_bytes()
    entry = 8 * 2 * 8  # local hidden, key and value, float64
    assert held["decoder"] <= 2 * 2 * BASE.window * entry
    assert held["cross"] <= 2 * 2 * BASE.queries * entry
    assert held["global"] < 2 * 2 * 102 * 16 * 2 * 8


def test_the_counter_makes_the_maps_of_the_row() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        chunk = random_chunk(rng, V, "static", SIZE, int(rng.integers(1, 40)))
        row = assemble_row([chunk], len(chunk.patch_length), V)
        counter, unit, closed, lengths = PatchCounter(V, SIZE), [], [], []
        begin = 0
        while begin < len(chunk.tokens):
            part = counter.add(chunk.tokens[begin : begin + int(rng.integers(1, 6))])
            begin += len(part.tokens)
            unit += part.unit.tolist()
            closed += part.closed.tolist()
            lengths += part.lengths.tolist()
        assert unit == row.unit.tolist()
        assert closed == row.closed.tolist()
        assert lengths == row.patch_length.tolist()[: len(lengths)]


def test_refuses_weights_of_another_shape_and_tokens_of_another_vocabulary() -> None:
    oracle, model = pair("default")
    weights = oracle.state_dict()
    weights["decoder.head.weight"] = weights["decoder.head.weight"][:-1]
    del weights["decoder.norm.weight"]
    told = r"decoder.norm.weight: missing\n.*decoder.head.weight: \(39, 8\) where this model has \(40, 8\)"
    with pytest.raises(UserError, match=told):
        LatentSpeechTextModel.from_weights(model.config, V, weights, SIZE)
    with pytest.raises(UserError, match="token 36 is outside"):
        PatchCounter(V, SIZE).add([V.bos, V.used_size])
    with pytest.raises(UserError, match="begins with BOS or a marker"):
        PatchCounter(V, SIZE).add([V.text_size])
