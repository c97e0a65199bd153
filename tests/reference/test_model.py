"""The oracle's shapes, names and options, against formulas written out here."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.reference.layers import RMSNorm, attend, rotate
from megatron_lst.reference.model import first_max
from megatron_lst.vocabulary import Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
BASE = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.3,
)  # fmt: skip


def small_row(one_token_units: bool = False) -> Row:
    tokens = np.array([V.bos, V.speech_marker, 25, 26, 27, 28, 29, V.text_marker, 5, 6, V.eos], np.int32)
    length = np.ones(11, np.int32) if one_token_units else np.array([1, 1, 4, 1, 1, 1, 1, 1], np.int32)
    late = np.zeros(len(length), bool)
    if not one_token_units:
        late[3] = True
    return assemble_row([Chunk(tokens, length, late, "d")], len(length) + 2, V)


def test_names_are_the_canonical_ones() -> None:
    direct = replace(BASE, text_path="direct", decoder_input="embedding", qk_norm=True, qkv_bias=True, queries=3)
    names = set(ReferenceModel(direct, V).state_dict())
    block = {"input_norm", "post_attention_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} | {
        f"attention.{x}_proj" for x in "qkvo"
    }
    cross = {f"cross_attention.{x}" for x in ("q_norm", "kv_norm", "q_proj", "k_proj", "v_proj", "o_proj")}
    expected = {"embedding", "text_embedding", "text_norm", "text_head", "encoder.pool_proj", "encoder.output_proj"}
    expected |= {"decoder.embedding", "decoder.unit_proj", "decoder.norm", "decoder.head"}
    expected |= {f"encoder.layers.0.{n}" for n in block} | {f"encoder.{n}" for n in cross}
    expected |= {f"decoder.layers.{i}.{n}" for n in block | cross for i in range(2)}
    qk = {"attention.q_norm", "attention.k_norm"}
    expected |= {f"global_transformer.layers.{i}.{n}" for n in block | qk for i in range(2)}
    biases = {f"global_transformer.layers.{i}.attention.{x}_proj.bias" for x in "qkv" for i in range(2)}
    assert names == {f"{n}.weight" for n in expected} | biases


def test_baseline_is_a_plain_transformer() -> None:
    model = ReferenceModel(replace(BASE, kind="baseline"), V)
    assert {n.split(".")[0] for n in model.state_dict()} == {"embedding", "global_transformer", "norm", "head"}
    assert model(small_row(one_token_units=True)).shape == (13, V.padded_size)
    with pytest.raises(UserError, match="units of one token"):
        model(small_row())


CHANGES: dict[str, object] = {
    "pooling": "mean", "window": 2, "decoder_window_units": 3, "cross_rope": True, "double_residual": True,
    "norm_eps": 0.1, "rope_theta": 10.0, "rope_scaling": RopeScalingConfig("llama3", context=16), "no_rope_every": 2,
}  # fmt: skip


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_without_weights_of_its_own_changes_the_logits(option: str) -> None:
    base = replace(BASE, decoder_window_units=2) if option == "cross_rope" else BASE
    model, row = ReferenceModel(base, V).double(), small_row()
    other = ReferenceModel(replace(base, **{option: CHANGES[option]}), V).double()  # type: ignore[arg-type]
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(row), other(row))


def test_every_field_of_the_configuration_is_covered() -> None:
    """Fields that set shapes show in the names test; a new field must be added to one of these tests."""
    shapes = {"kind", "hidden", "layers", "heads", "kv_heads", "ffn", "qk_norm", "local_hidden", "local_heads"}
    shapes |= {
        "head_size",
        "qkv_bias",
        "local_ffn",
        "encoder_layers",
        "decoder_layers",
        "queries",
        "decoder_input",
        "text_path",
        "init_std",
    }
    assert {f.name for f in fields(ModelConfig)} == shapes | set(CHANGES)


def test_direct_text_does_not_touch_local_weights_on_a_text_document() -> None:
    model = ReferenceModel(replace(BASE, text_path="direct"), V).double()
    tokens = np.array([V.bos, 5, 6, 7, V.eos], np.int32)
    row = assemble_row([Chunk(tokens, np.ones(5, np.int32), np.zeros(5, bool), "t")], 6, V)
    model(row).sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert not any(n.startswith(("encoder.", "decoder.", "embedding.")) for n in touched)
    assert "text_head.weight" in touched


def test_direct_text_with_speech_trains_both_heads() -> None:
    model = ReferenceModel(replace(BASE, text_path="direct"), V).double()
    model(small_row()).square().sum().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert silent == set()


def test_one_unit_window_equals_wide_window_when_values_agree() -> None:
    """With W_u = 1 every query has k keys of one unit; attention over the unit's two keys is not the identity."""
    model, row = ReferenceModel(BASE, V).double(), small_row()
    wide = ReferenceModel(replace(BASE, decoder_window_units=2), V).double()
    wide.load_state_dict(model.state_dict())
    assert torch.equal(model(row)[0], wide(row)[0]), "at BOS one unit is closed: any window sees the same"
    assert not torch.equal(model(row)[1], wide(row)[1])


def test_attention_is_softmax_of_scaled_scores_with_grouped_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 2, dtype=torch.float64, generator=generator)
    k, v = (torch.randn(5, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.ones(3, 5, dtype=torch.bool).tril(1)
    out = attend(q, k, v, mask).view(3, 4, 2)
    for n in range(3):
        for head in range(4):
            seen = n + 2
            weights = torch.softmax(k[:seen, head // 2] @ q[n, head] / 2**0.5, 0)
            torch.testing.assert_close(out[n, head], weights @ v[:seen, head // 2])


def test_rope_turns_pairs_half_a_head_apart_and_is_relative() -> None:
    x = torch.randn(1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, torch.tensor([3]), 100.0)
    for i in range(4):
        angle = 3 * 100.0 ** (-2 * i / 8)
        a, b = x[0, 0, i], x[0, 0, i + 4]
        expected = torch.stack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])
        torch.testing.assert_close(turned[0, 0, [i, i + 4]], expected)
    y = x.flip(-1)
    products = [(rotate(x, torch.tensor([s + 5]), 100.0) * rotate(y, torch.tensor([s]), 100.0)).sum() for s in (0, 400)]
    torch.testing.assert_close(products[0], products[1])


def test_norms_are_computed_in_float32_for_bfloat16() -> None:
    norm = RMSNorm(64, 1e-5)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(norm.bfloat16()(x), norm.float()(x.float()).bfloat16())


def test_max_pooling_sends_ties_to_the_first_index() -> None:
    x = torch.tensor([[1.0, 3.0], [2.0, 3.0], [2.0, 1.0]], requires_grad=True)
    first_max(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_in_other_dtypes_near_float64(dtype: torch.dtype) -> None:
    model, row = ReferenceModel(BASE, V), small_row()
    exact = model.double()(row)
    close = 1e-5 if dtype == torch.float32 else 0.15
    assert (model.to(dtype)(row).double() - exact).abs().max() < close * exact.abs().max()
