"""Warm starts: text logits equal those of the real classes of transformers, and everything else is refused by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
import transformers

from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.families import FAMILIES
from megatron_lst.inference.warm_start import WarmStart, warm_start
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=2, heads=4, kv_heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1,
    init_std=0.3, rope_theta=10000.0, norm_eps=1e-6, text_path="direct",
)  # fmt: skip
THEIRS = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "initializer_range": 0.3, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TOKENS = [1, 5, 9, 3, 20, 11, 5, 8, 21, 4]
EXTRAS = {"llama": {}, "mistral": {"sliding_window": None}, "qwen3": {}}


def saved(folder: Path, kind: str = "llama", *, shard: str = "1GB", dtype: Any = None, **changes: Any) -> Any:
    """A tiny checkpoint of the real class, and the class. Norms and biases are not what they are at the start."""
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(kind, **{**THEIRS, **EXTRAS.get(kind, {}), **changes})
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype or torch.float32).save_pretrained(folder, max_shard_size=shard)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def started(
    folder: Path, config: ModelConfig = TINY, context: int | None = 64, vocabulary: Vocabulary = V
) -> tuple[WarmStart, dict[str, torch.Tensor]]:
    weights = dict(ReferenceModel(config, vocabulary).state_dict())
    return warm_start(folder, weights, config, vocabulary, context), weights


def logits(config: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    size = 1 if config.kind == "baseline" else 3
    model = LatentSpeechTextModel.from_weights(config, V, weights, size)
    outputs = model.advance([model.counters(1)[0].add(TOKENS)], Cache(config, 1, one_call=True))
    return outputs.logits(np.arange(len(TOKENS)))[:, :24]


def assert_equal_logits(folder: Path, expected: torch.Tensor, config: ModelConfig, **options: Any) -> WarmStart:
    result, weights = started(folder, config, **options)
    torch.testing.assert_close(logits(config, weights), expected, rtol=1e-5, atol=1e-5)
    assert all(not n.startswith("global_transformer.") for n in result.fresh)
    return result


@torch.no_grad()
def expected_of(model: Any) -> torch.Tensor:
    return model(torch.tensor([TOKENS])).logits[0].float()


@pytest.mark.parametrize("options", [{"text_path": "direct"}, {"kind": "baseline"}])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", list(FAMILIES))
def test_text_logits_equal_the_language_models(tmp_path: Path, kind: str, tied: bool, options: dict[str, Any]) -> None:
    model = saved(tmp_path / "theirs", kind, tie_word_embeddings=tied)
    config = replace(TINY, qk_norm=kind == "qwen3", **options)
    result = assert_equal_logits(tmp_path / "theirs", expected_of(model), config)
    assert not result.unused
    assert not result.notes
    # The comparison can fail: with another theta the logits are others.
    _, weights = started(tmp_path / "theirs", config)
    other = logits(replace(config, rope_theta=100.0), weights)
    assert (other - expected_of(model)).abs().max() > 1e-3


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


VERSION_5 = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, transformers
assert transformers.__version__.startswith("5."), transformers.__version__
kind, folder, settings, tokens = sys.argv[2], sys.argv[3], eval(sys.argv[4]), eval(sys.argv[5])
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
for p in model.parameters():
    if p.dim() == 1: p.data.add_(0.2 * torch.randn_like(p))
model.save_pretrained(folder)
with torch.no_grad(): torch.save(model(torch.tensor([tokens])).logits[0], folder + "/expected.pt")
"""


@pytest.mark.parametrize("theta", [10000.0, 500.0])
@pytest.mark.parametrize("kind", list(FAMILIES))
def test_checkpoints_of_transformers_5(tmp_path: Path, kind: str, theta: float) -> None:
    """Real ones, where LST_TRANSFORMERS_5 names a folder of `pip install --target`."""
    place = os.environ.get("LST_TRANSFORMERS_5")
    if place is None:
        pytest.skip("LST_TRANSFORMERS_5 does not name a folder with transformers 5 (pip install --target FOLDER)")
    settings = {
        **THEIRS, **EXTRAS[kind], "rope_parameters": {"rope_type": "default", "rope_theta": theta}
    }  # fmt: skip
    folder = tmp_path / "theirs"
    subprocess.run(
        [sys.executable, "-c", VERSION_5, place, kind, str(folder), repr(settings), repr(TOKENS)], check=True
    )  # fmt: skip
    assert "rope_theta" not in json.loads((folder / "config.json").read_text())
    config = replace(TINY, qk_norm=kind == "qwen3", rope_theta=theta)
    assert_equal_logits(folder, torch.load(folder / "expected.pt", weights_only=True), config)
    other = theta + 1
    with pytest.raises(
        UserError, match=rf"model.rope_theta: {other} here, {theta} there \(rope_parameters.rope_theta\)"
    ):
        started(folder, replace(config, rope_theta=other))


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
    with pytest.raises(UserError, match=r"rope_theta: 10000.0 here, 500.0 there \(rope_parameters"):
        started(tmp_path / "theirs")
    edited(tmp_path / "theirs", rope_theta=10000.0)  # both spellings, and they disagree
    with pytest.raises(UserError, match=r"10000.0 there \(rope_theta\)"):
        started(tmp_path / "theirs", replace(TINY, rope_theta=500.0))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen2", {}, "'qwen2' is not taken: its query, key and value projections have biases"),
        ("granite", {"logits_scaling": 8.0}, "'granite' is not taken: it multiplies embeddings, residuals"),
        ("gemma2", {}, "'gemma2' is not taken: its norms multiply by 1"),
        ("smollm3", {}, "'smollm3' is not taken: it has layers without RoPE"),
        ("olmo2", {}, "'olmo2' is not taken: its norms stand after the layers"),
        ("phi3", {}, "'phi3' is not taken: its projections are joined"),
        ("mixtral", {"num_local_experts": 2}, "'mixtral' is not taken: it has experts"),
        ("ernie4_5", {}, "'ernie4_5' is not taken. Taken are llama, mistral, qwen3"),
        ("mistral", {"sliding_window": 8}, "sliding_window=8: attention in the global transformer is full"),
        ("llama", {"attention_bias": True}, "attention_bias=True changes what is computed"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True changes what is computed"),
        ("llama", {"hidden_act": "gelu"}, r"activation \(hidden_act\): 'silu' here, 'gelu' there"),
        ("llama", {"head_dim": 8}, "head size .*: 4 here, 8 there"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling.rope_type='linear'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.factor=2.0: RoPE is not scaled"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "layer_types="),
    ],
)
def test_what_computes_something_else_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "theirs", kind, **changes)
    with pytest.raises(UserError, match=message):
        started(tmp_path / "theirs", replace(TINY, qk_norm=kind == "qwen3"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_multiplier": 0.2}, "residual_multiplier=0.2 is not known here"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0 is not known here"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers=\[1, 0\] is not known here"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config=.* changes what is computed"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map=.* is not known here"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 changes what is computed"),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0}}, "rope_parameters.factor"),
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
    assert set(result.unused.values()) == {"follows from model.rope_theta"}


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
