"""Which language models `lst warm-start` takes, as data: families whose text logits are proved equal to ours.

A `config.json` is read by allow-list.  Every key of it is compared with our configuration, or is known to change
nothing, or changes nothing at the value it has; any other key is refused by name, for a checkpoint that computes
something else would be taken without a sign.  A new family is an entry here, what the model lacks for it, and a case in
tests/inference/test_warm_start.py, which compares logits with the real class of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_lst.config.schema import ModelConfig
from megatron_lst.vocabulary import Vocabulary


@dataclass(frozen=True)
class Family:
    """One `model_type` whose layers compute what ours do.

    Attributes:
        architecture: the only class of transformers that is taken.
        qk_norm: whether its layers have norms on queries and keys.
        window_switch: `sliding_window` counts only where `use_sliding_window` is set.
        defaults: values of keys that a config.json may leave out, as that class has them.
    """

    architecture: str
    qk_norm: bool = False
    window_switch: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen3": Family(
        "Qwen3ForCausalLM", qk_norm=True, window_switch=True, defaults={"num_key_value_heads": 32, "head_dim": 128}
    ),
}

REFUSED: Mapping[str, str] = {
    "qwen2": "its query, key and value projections have biases",
    "qwen3_moe": "it has experts",
    "mixtral": "it has experts",
    "granite": "it multiplies embeddings, residuals, attention and logits",
    "gemma": "its norms multiply by 1 + weight, and it scales embeddings",
    "gemma2": "its norms multiply by 1 + weight, it has norms after its layers, and it caps logits",
    "gemma3_text": "its norms multiply by 1 + weight, and it has norms after its layers",
    "smollm3": "it has layers without RoPE",
    "phi": "it has LayerNorm, biases, and RoPE on a part of each head",
    "phi3": "its projections are joined, and its RoPE may be scaled",
    "olmo": "its norms have no weights",
    "olmo2": "its norms stand after the layers",
    "cohere": "it has parallel layers and LayerNorm",
    "stablelm": "it has LayerNorm, and RoPE on a part of each head",
    "gpt2": "it has learned positions, LayerNorm and biases",
    "gpt_neox": "it has LayerNorm, biases, and RoPE on a part of each head",
    "deepseek_v3": "it has latent attention and experts",
}
"""Well-known families that are not taken, and why; any other is refused without a reason."""

_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": None,
    "sliding_window": None,
}

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

_COMPARED = {*_SIZES, *_DEFAULTS, "model_type", "architectures", "rope_theta", "rope_scaling", "rope_parameters"}

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "pruned_heads": ({}, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}
"""Keys that change nothing at these values, and what is computed at any other."""

_NOTED = ("bos_token_id", "eos_token_id")

_HARMLESS = {
    *_NOTED, "pad_token_id", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "tokenizer_class", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path", "use_cache",
    "initializer_range", "max_position_embeddings", "max_window_layers", "pretraining_tp", "attention_dropout",
    "resid_pdrop", "embd_pdrop", "hidden_dropout", "is_decoder", "return_dict", "output_hidden_states",
    "output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss", "tie_encoder_decoder",
    "cross_attention_hidden_size", "chunk_size_feed_forward", "id2label", "label2id", "finetuning_task", "problem_type",
    "prefix", "task_specific_params", "_attn_implementation_autoset", "_attn_implementation", "unsloth_fixed",
    "unsloth_version", "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "remove_invalid_values",
}  # fmt: skip
"""Ids, names, dropout in training and settings of generation: no logit depends on them."""


def differences(
    theirs: Mapping[str, Any], config: ModelConfig, vocabulary: Vocabulary, context: int | None
) -> list[str]:
    """Every reason why a checkpoint with this config.json would not compute the same here; empty: none.

    Args:
        context: most positions of the global transformer in a row; None: unknown, and a sliding window is refused.
    """
    kind = theirs.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        why = f": {REFUSED[kind]}" if isinstance(kind, str) and kind in REFUSED else ""
        return [f"model_type {kind!r} is not taken{why}. Taken are {', '.join(FAMILIES)}"]
    wrong = [
        f"{key}={theirs[key]!r} is not known here and may change what is computed"
        for key in theirs
        if key not in _COMPARED and key not in _HARMLESS and key not in _NEUTRAL and key != "layer_types"
    ]
    wrong += [
        f"{key}={theirs[key]!r} changes what is computed, and there is no place for it here"
        for key, harmless in _NEUTRAL.items()
        if key in theirs and theirs[key] not in harmless
    ]
    named = theirs.get("architectures") or [family.architecture]
    if named != [family.architecture]:
        wrong.append(f"architectures={named!r}: only {family.architecture} is taken")
    missing = [key for key in _SIZES if not _is_whole(theirs.get(key))]
    if missing:
        return [*wrong, *(f"{key}={theirs.get(key)!r}: expected a number above 0" for key in missing)]
    wrong += _sizes(theirs, family, config)
    wrong += _rope(theirs, config)
    wrong += _window(theirs, family, context)
    takes_text = config.kind == "baseline" or config.text_path == "direct"
    if takes_text and vocabulary.text_size != theirs["vocab_size"]:
        wrong.append(f"vocabulary.text_size: {vocabulary.text_size} here, {theirs['vocab_size']} there")
    return wrong


def notes(theirs: Mapping[str, Any], vocabulary: Vocabulary) -> list[str]:
    """Differences that change no logit, but what documents look like to the language model."""
    found = []
    for key, ours in zip(_NOTED, (vocabulary.bos, vocabulary.eos), strict=True):
        value = theirs.get(key)
        if value is not None and ours not in (value if isinstance(value, list) else [value]):
            found.append(f"{key} is {value} there, vocabulary.{key[:3]} is {ours} here")
    return found


def is_tied(theirs: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding's table."""
    return bool(value_of(theirs, "tie_word_embeddings"))


def value_of(theirs: Mapping[str, Any], key: str) -> Any:
    """A key's value, or its family's default where config.json leaves it out."""
    return theirs[key] if key in theirs else {**_DEFAULTS, **FAMILIES[theirs["model_type"]].defaults}[key]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _sizes(theirs: Mapping[str, Any], family: Family, config: ModelConfig) -> list[str]:
    heads = theirs["num_attention_heads"]
    pairs = [
        ("model.hidden", config.hidden, theirs["hidden_size"]),
        ("model.layers", config.layers, theirs["num_hidden_layers"]),
        ("model.heads", config.heads, heads),
        ("model.kv_heads", config.global_kv_heads, value_of(theirs, "num_key_value_heads") or heads),
        ("model.ffn", config.global_ffn, theirs["intermediate_size"]),
        ("model.norm_eps", config.norm_eps, value_of(theirs, "rms_norm_eps")),
        (
            "head size (model.hidden / model.heads)",
            config.hidden // config.heads,
            value_of(theirs, "head_dim") or theirs["hidden_size"] // heads,
        ),
        ("model.qk_norm", config.qk_norm, family.qk_norm),
        ("activation (hidden_act)", "silu", value_of(theirs, "hidden_act")),
    ]
    return [f"{name}: {mine!r} here, {other!r} there" for name, mine, other in pairs if mine != other]


def _rope(theirs: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """`rope_theta` and `rope_scaling` as transformers 4 writes them, `rope_parameters` as transformers 5 does."""
    wrong: list[str] = []
    thetas: dict[str, Any] = {}
    if theirs.get("rope_theta") is not None:
        thetas["rope_theta"] = theirs["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        given = theirs.get(key)
        if given is None:
            continue
        if not isinstance(given, dict):
            wrong.append(f"{key}={given!r}: expected a mapping")
            continue
        for name, value in given.items():
            neutral = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
            if name == "rope_theta":
                thetas[f"{key}.rope_theta"] = value
            elif value is not None and (name not in neutral or value != neutral[name]):
                wrong.append(f"{key}.{name}={value!r}: RoPE is not scaled here")
    for name, theta in thetas.items() or [("rope_theta", 10000.0)]:
        if isinstance(theta, bool) or not isinstance(theta, int | float):
            wrong.append(f"{name}={theta!r}: expected a number")
        elif theta != config.rope_theta:
            wrong.append(f"model.rope_theta: {config.rope_theta!r} here, {float(theta)!r} there ({name})")
    return wrong


def _window(theirs: Mapping[str, Any], family: Family, context: int | None) -> list[str]:
    """A sliding window is as if absent where no row is longer."""
    wrong = []
    types = theirs.get("layer_types")
    if types is not None and (not isinstance(types, list) or set(types) != {"full_attention"}):
        wrong.append(f"layer_types={types!r}: only full_attention is computed here")
    window = value_of(theirs, "sliding_window")
    if window is None or (family.window_switch and not value_of(theirs, "use_sliding_window")):
        return wrong
    if not _is_whole(window):
        wrong.append(f"sliding_window={window!r}: expected a number above 0")
    elif context is None or context > window:
        rows = "rows of unknown length" if context is None else f"data.units={context}"
        wrong.append(f"sliding_window={window}: attention in the global transformer is full, over {rows}")
    return wrong
