"""Warm starts: text logits equal those of the real classes of transformers, and everything else is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference.warm_start import WarmStart, warm_start
from megatron_lst.reference import ReferenceModel
from tests.support.checkpoints import LLAMA3, TINY, V, expected_of, logits, saved, started


def assert_equal_logits(folder: Path, expected: torch.Tensor, config: ModelConfig, **options: Any) -> WarmStart:
    result, weights = started(folder, config, **options)
    torch.testing.assert_close(logits(config, weights), expected, rtol=1e-5, atol=1e-5)
    assert all(not n.startswith("global_transformer.") for n in result.fresh)
    return result


def test_shards_in_bfloat16_and_other_head_counts(tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs", shard="3KB", dtype=torch.bfloat16, num_key_value_heads=1)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert_equal_logits(tmp_path / "theirs", expected_of(model), replace(TINY, kv_heads=1))


def test_a_window_that_covers_every_row_changes_nothing(tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs", "mistral", sliding_window=12)
    assert_equal_logits(tmp_path / "theirs", expected_of(model), TINY, context=12)
    for context in (13, None):
        with pytest.raises(UserError, match="sliding_window=12: attention in the global transformer is full"):
            started(tmp_path / "theirs", context=context)
    # The refusal is needed: a window inside the tokens gives other logits.
    narrow = saved(tmp_path / "narrow", "mistral", sliding_window=4)
    assert (expected_of(narrow) - expected_of(model)).abs().max() > 1e-3


def edited(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None as `DROP` takes one away."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not DROP}))


DROP = object()


def test_the_spelling_of_transformers_5(tmp_path: Path) -> None:
    """As its classes write a configuration, without having them."""
    model = saved(tmp_path / "theirs", rope_theta=500.0)
    edited(tmp_path / "theirs", rope_theta=DROP, rope_scaling=DROP, torch_dtype=DROP, dtype="float32")
    edited(tmp_path / "theirs", rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert_equal_logits(tmp_path / "theirs", expected_of(model), replace(TINY, rope_theta=500.0))
    with pytest.raises(UserError, match=r"rope_theta: 10000.0 here, 500.0 there"):
        started(tmp_path / "theirs")
    edited(tmp_path / "theirs", rope_theta=10000.0)  # both spellings, and they disagree
    with pytest.raises(
        UserError, match=r"rope_theta=10000.0 and rope_parameters.rope_theta=500.0 contradict each other"
    ):
        started(tmp_path / "theirs", replace(TINY, rope_theta=500.0))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen2_moe", {"num_experts": 2, "moe_intermediate_size": 8}, "'qwen2_moe' is not taken: it has experts"),
        ("granite", {"logits_scaling": 8.0}, "'granite' is not taken: it multiplies embeddings, residuals"),
        ("gemma2", {}, "'gemma2' is not taken: its norms multiply by 1"),
        ("smollm3", {"no_rope_layers": [0, 1]}, r"no_rope_layers=\[0, 1\]: only every n-th layer"),
        ("smollm3", {"no_rope_layer_interval": 2}, "model.no_rope_every: 0 here, 2 there"),
        ("smollm3", {"attention_bias": True}, "attention_bias=True changes what is computed"),
        ("qwen2", {}, "model.qkv_bias: False here, True there"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "sliding_window=8: attention",
        ),
        ("olmo2", {}, "'olmo2' is not taken: its norms stand after the layers"),
        ("phi3", {}, "'phi3' is not taken: its projections are joined"),
        ("mixtral", {"num_local_experts": 2}, "'mixtral' is not taken: it has experts"),
        ("ernie4_5", {}, "'ernie4_5' is not taken. Taken are llama, mistral, qwen2, qwen3, smollm3"),
        ("mistral", {"sliding_window": 8}, "sliding_window=8: attention in the global transformer is full"),
        ("llama", {"attention_bias": True}, "attention_bias=True changes what is computed"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True changes what is computed"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu': only silu is computed here"),
        ("llama", {"head_dim": 8}, "model.head_size: 4 here, 8 there"),
        ("llama", {"rope_scaling": LLAMA3}, "model.rope_scaling.kind: 'none' here, 'llama3' there"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling.rope_type='linear'"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type='dynamic': RoPE is not",
        ),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type='yarn': RoPE is not"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "layer_types="),
    ],
)
def test_what_computes_something_else_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "theirs", kind, **changes)
    with pytest.raises(UserError, match=message):
        started(
            tmp_path / "theirs",
            replace(TINY, qk_norm=kind == "qwen3"),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_multiplier": 0.2}, "residual_multiplier=0.2 is not known here"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0 is not known here"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\] is not known here"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config=.* changes what is computed"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map=.* is not known here"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 changes what is computed"),
        (
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0}},
            "rope_parameters.low_freq_factor=None: expected a number above 0",
        ),
        ({"rope_parameters": {**LLAMA3, "beta_fast": 32}}, "rope_parameters.beta_fast=32 is not known here with"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2}}, "rope_scaling.factor=2 is not known here with"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}}, "contradict each other"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4': expected a number"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM is taken"),
        ({"hidden_size": "16"}, "hidden_size='16': expected a number above 0"),
        ({"num_hidden_layers": 3}, "model.layers: 2 here, 3 there"),
        ({"rms_norm_eps": 1e-5}, "model.norm_eps: 1e-06 here, 1e-05 there"),
        ({"vocab_size": 25}, "vocabulary.text_size: 24 here, 25 there"),
        ({"model_type": "llava", "text_config": {}}, "model_type 'llava' is not taken"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not taken"),
    ],
)
def test_a_key_that_would_change_the_result_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    saved(tmp_path / "theirs")
    started(tmp_path / "theirs")  # as it was written, it is taken
    edited(tmp_path / "theirs", **changes)
    with pytest.raises(UserError, match=message):
        started(tmp_path / "theirs")


def test_keys_that_change_nothing_are_taken(tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs")
    edited(
        tmp_path / "theirs", attention_bias=False, quantization_config=None, sliding_window=None, rope_scaling=None,
        partial_rotary_factor=1.0, use_cache=False, _name_or_path="x", layer_types=["full_attention"] * 2,
    )  # fmt: skip
    assert_equal_logits(tmp_path / "theirs", expected_of(model), TINY)


Tensors = dict[str, torch.Tensor]


def _as_fp8(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _not_finite(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}), UserError, "q_proj.bias: there"),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}), UserError, "weight_scale: t"),
        (lambda t: t.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(4)}), UserError, "q_norm.weight: t"),
        (lambda t: t.update({"model.layers.2.input_layernorm.weight": torch.ones(16)}), UserError, r"layers\.2\..*: t"),
        (lambda t: t.update({"model.vision.weight": torch.ones(16)}), UserError, "model.vision.weight: there is no"),
        (lambda t: t.update({"lm_head.bias": torch.ones(24)}), UserError, "lm_head.bias: there is no place"),
        (_as_fp8, UserError, "up_proj.weight: stored as F8_E4M3"),
        (_not_finite, DamagedDataError, "up_proj.weight holds values that are not finite"),
        (lambda t: t.pop("lm_head.weight"), DamagedDataError, "lacks 1 weights, such as the one for text_head.weight"),
        (lambda t: t.pop("model.norm.weight"), DamagedDataError, "lacks 1 weights"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), DamagedDataError, "lacks 1 weights"),
        (
            lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor([1.0, 0.5])}),
            UserError, "inv_freq is not RoPE of theta 10000.0",
        ),
    ],
)  # fmt: skip
def test_a_tensor_that_has_no_place_is_refused(
    tmp_path: Path, change: Callable[[Tensors], None], error: type[Exception], message: str
) -> None:
    saved(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(error, match=message):
        started(tmp_path / "theirs")


def test_a_refused_checkpoint_leaves_the_weights_alone(tmp_path: Path) -> None:
    saved(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    save_file({**tensors, "other": torch.ones(1)}, tmp_path / "theirs" / "model.safetensors")
    weights = dict(ReferenceModel(TINY, V).state_dict())
    before = {name: value.clone() for name, value in weights.items()}
    with pytest.raises(UserError, match="other: there is no place"):
        warm_start(tmp_path / "theirs", weights, TINY, V)
    assert all(torch.equal(weights[name], value) for name, value in before.items())


def test_old_checkpoints_with_frequencies_are_taken(tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor([1.0, 0.01]).half()}
    save_file({**load_file(path), **frequencies}, path)
    result = assert_equal_logits(tmp_path / "theirs", expected_of(model), TINY)
    assert set(result.unused.values()) == {"follows from model.rope_theta and model.rope_scaling"}


def test_a_tied_head_that_is_stored_must_be_the_table(tmp_path: Path) -> None:
    model = saved(tmp_path / "theirs", tie_word_embeddings=True)
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert_equal_logits(tmp_path / "theirs", expected_of(model), TINY)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from the embedding although tie_word_embeddings"):
        started(tmp_path / "theirs")


def test_the_patch_path_takes_the_layers_and_reports_the_rest(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "theirs")
    config = replace(TINY, text_path="patch")
    fresh = ReferenceModel(config, V).state_dict()["encoder.pool_proj.weight"].clone()
    result, weights = started(tmp_path / "theirs", config, vocabulary=V)
    assert torch.equal(
        weights["global_transformer.layers.1.mlp.up_proj.weight"], theirs.model.layers[1].mlp.up_proj.weight
    )
    assert torch.equal(weights["encoder.pool_proj.weight"], fresh)
    assert set(result.unused) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert "fresh: decoder.layers.*.cross_attention.q_proj.weight" in result.report()


def test_other_ids_of_documents_are_noted(tmp_path: Path) -> None:
    saved(tmp_path / "theirs", bos_token_id=7, eos_token_id=[3, 2])
    result, _ = started(tmp_path / "theirs")
    assert result.notes == ["bos_token_id is 7 there, vocabulary.bos is 1 here"]
    assert "note: bos_token_id is 7" in result.report()


def test_incomplete_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        started(tmp_path)
    folder = tmp_path / "theirs"
    saved(folder, shard="3KB")
    first = min(folder.glob("*.safetensors"))
    whole = first.read_bytes()
    for content in (b"\0" * 100, whole[:-50], b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"):
        first.write_bytes(content)
        with pytest.raises(DamagedDataError, match=first.name):
            started(folder)
    first.unlink()
    with pytest.raises(DamagedDataError, match=f"{first.name} missing"):
        started(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(DamagedDataError, match="does not name files of this folder"):
        started(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(DamagedDataError, match="not a JSON object"):
        started(folder)
