"""Which language models `lst warm-start` takes, as data: families whose text logits are proved equal to ours.

A `config.json` is read by allow-list.  Every key of it becomes keys of our configuration, or is known to change
nothing, or changes nothing at the value it has; any other key is refused by name, for a checkpoint that computes
something else would be taken without a sign.  A new family is an entry here, what the model lacks for it, and a case in
tests/inference/test_families.py, which compares logits with the real class of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.vocabulary import Vocabulary


@dataclass(frozen=True)
class Family:
    """One `model_type` whose layers compute what ours do.

    Attributes:
        architecture: the only class of transformers that is taken.
        qkv_bias, qk_norm: whether its layers have biases, or norms on each head, of queries and keys.
        no_rope: some layers have no RoPE, as `no_rope_layers` or `no_rope_layer_interval` say.
        window_switch: `sliding_window` counts only where `use_sliding_window` is set.
        defaults: values of keys that a config.json may leave out, as that class has them.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    no_rope: bool = False
    window_switch: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, window_switch=True, defaults={"num_key_value_heads": 32}),
    "qwen3": Family(
        "Qwen3ForCausalLM", qk_norm=True, window_switch=True, defaults={"num_key_value_heads": 32, "head_dim": 128}
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        no_rope=True,
        window_switch=True,
        defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
    ),
}

REFUSED: Mapping[str, str] = {
    "qwen2_moe": "it has experts",
    "qwen3_moe": "it has experts",
    "mixtral": "it has experts",
    "granite": "it multiplies embeddings, residuals, attention and logits",
    "gemma": "its norms multiply by 1 + weight, and it scales embeddings",
    "gemma2": "its norms multiply by 1 + weight, it has norms after its layers, and it caps logits",
    "gemma3_text": "its norms multiply by 1 + weight, and it has norms after its layers",
    "phi": "it has LayerNorm, biases, and RoPE on a part of each head",
    "phi3": "its projections are joined, and its RoPE may be scaled",
    "olmo": "its norms have no weights",
    "olmo2": "its norms stand after the layers, and those of queries and keys span all heads",
    "olmo3": "its norms stand after the layers, and those of queries and keys span all heads",
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
    "rope_theta": 10_000.0,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": None,
    "sliding_window": None,
}

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

_READ = {*_SIZES, *_DEFAULTS, "model_type", "architectures", "rope_scaling", "rope_parameters", "layer_types"}
_NO_ROPE = ("no_rope_layers", "no_rope_layer_interval")
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_frequency",
    "high_freq_factor": "high_frequency",
    "original_max_position_embeddings": "context",
}
"""Keys of scaled RoPE -> those of `model.rope_scaling`."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "pruned_heads": ({}, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
    "use_mrope": (False, None),
    "is_llama_config": (True, None),
    "rope_interleaved": (False, None),
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
    "remove_invalid_values", "transformers.js_config",
}  # fmt: skip
"""Ids, names, dropout in training and settings of generation: no logit depends on them."""


@dataclass(frozen=True)
class Described:
    """A config.json in our terms.

    Attributes:
        model: keys of the model section that it fixes -> their values; empty where `wrong` names missing sizes.
        wrong: every reason why it has no place here, whatever is configured.
        window: most positions that attention looks back; None: all.
        text_size: its vocabulary.
    """

    model: Mapping[str, Any]
    wrong: list[str]
    window: int | None = None
    text_size: int = 0


def described(theirs: Mapping[str, Any]) -> Described:
    """What a model section must hold to compute what a checkpoint with this config.json computes."""
    kind = theirs.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        why = f": {REFUSED[kind]}" if isinstance(kind, str) and kind in REFUSED else ""
        return Described({}, [f"model_type {kind!r} is not taken{why}. Taken are {', '.join(FAMILIES)}"])
    read = _READ if family.no_rope else _READ - set(_NO_ROPE)
    wrong = [
        f"{key}={theirs[key]!r} is not known here and may change what is computed"
        for key in sorted(set(theirs) - read - set(_NEUTRAL) - _HARMLESS)
    ]
    wrong += [
        f"{key}={theirs[key]!r} changes what is computed, and there is no place for it here"
        for key, harmless in _NEUTRAL.items()
        if key in theirs and theirs[key] not in harmless
    ]
    named = theirs.get("architectures") or [family.architecture]
    if named != [family.architecture]:
        wrong.append(f"architectures={named!r}: only {family.architecture} is taken")
    if (act := value_of(theirs, "hidden_act")) != "silu":
        wrong.append(f"hidden_act={act!r}: only silu is computed here")
    missing = [key for key in _SIZES if not _is_whole(theirs.get(key))]
    if missing:
        return Described({}, [*wrong, *(f"{key}={theirs.get(key)!r}: expected a number above 0" for key in missing)])
    heads, hidden = theirs["num_attention_heads"], theirs["hidden_size"]
    model: dict[str, Any] = {
        "hidden": hidden,
        "layers": theirs["num_hidden_layers"],
        "heads": heads,
        "kv_heads": value_of(theirs, "num_key_value_heads") or heads,
        "head_size": value_of(theirs, "head_dim") or hidden // heads,
        "ffn": theirs["intermediate_size"],
        "norm_eps": value_of(theirs, "rms_norm_eps"),
        "qkv_bias": family.qkv_bias,
        "qk_norm": family.qk_norm,
    }
    theta, scaling = _rope(theirs, wrong)
    model |= {"rope_theta": theta, "rope_scaling": scaling}
    model["no_rope_every"] = _no_rope_every(theirs, wrong) if family.no_rope else 0
    return Described(model, wrong, _window(theirs, family, wrong), theirs["vocab_size"])


def differences(
    theirs: Mapping[str, Any], config: ModelConfig, vocabulary: Vocabulary, context: int | None
) -> list[str]:
    """Every reason why a checkpoint with this config.json would not compute the same here; empty: none.

    Args:
        context: most positions of the global transformer in a row; None: unknown, and a sliding window is refused.
    """
    there = described(theirs)
    wrong = list(there.wrong)
    computed = {"kv_heads": "global_kv_heads", "ffn": "global_ffn", "head_size": "global_head_size"}
    for key, value in there.model.items():
        mine = getattr(config, computed.get(key, key))
        if key == "rope_scaling":
            wrong += _scaling_differences(mine, value)
        elif mine != value:
            wrong.append(f"model.{key}: {mine!r} here, {value!r} there")
    if there.window is not None and (context is None or context > there.window):
        rows = "rows of unknown length" if context is None else f"data.units={context}"
        wrong.append(f"sliding_window={there.window}: attention in the global transformer is full, over {rows}")
    takes_text = config.kind == "baseline" or config.text_path == "direct"
    if there.model and takes_text and vocabulary.text_size != there.text_size:
        wrong.append(f"vocabulary.text_size: {vocabulary.text_size} here, {there.text_size} there")
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


def _scaling_differences(mine: RopeScalingConfig, there: RopeScalingConfig) -> list[str]:
    if mine.kind == there.kind == "none":
        return []
    keys = ("kind", *_LLAMA3.values()) if mine.kind == there.kind else ("kind",)
    return [
        f"model.rope_scaling.{key}: {getattr(mine, key)!r} here, {getattr(there, key)!r} there"
        for key in keys
        if getattr(mine, key) != getattr(there, key)
    ]


def _rope(theirs: Mapping[str, Any], wrong: list[str]) -> tuple[float, RopeScalingConfig]:
    """`rope_theta` and `rope_scaling` as transformers 4 writes them, `rope_parameters` as transformers 5 does.

    Where both are there they must agree; what is wrong is added to `wrong`.
    """
    thetas: dict[str, Any] = {}
    scalings: dict[str, RopeScalingConfig] = {}
    if theirs.get("rope_theta") is not None:
        thetas["rope_theta"] = theirs["rope_theta"]
    for key in ("rope_scaling", "rope_parameters"):
        given = theirs.get(key)
        if given is None:
            continue
        if not isinstance(given, dict):
            wrong.append(f"{key}={given!r}: expected a mapping")
            continue
        if given.get("rope_theta") is not None:
            thetas[f"{key}.rope_theta"] = given["rope_theta"]
        scalings[key] = _scaling(key, given, wrong)
    found: dict[str, float] = {}
    for name, theta in thetas.items():
        if isinstance(theta, bool) or not isinstance(theta, int | float):
            wrong.append(f"{name}={theta!r}: expected a number")
        else:
            found[name] = float(theta)
    for values in (found, scalings):
        if len({repr(value) for value in values.values()}) > 1:
            wrong.append(
                " and ".join(f"{name}={_value_at(theirs, name)!r}" for name in values) + " contradict each other"
            )
    theta = next(iter(found.values()), float(value_of({"model_type": theirs["model_type"]}, "rope_theta")))
    return theta, next(iter(scalings.values()), RopeScalingConfig())


def _value_at(theirs: Mapping[str, Any], name: str) -> Any:
    """A value by its dotted name."""
    value: Any = theirs
    for part in name.split("."):
        value = value[part]
    return value


def _scaling(key: str, given: Mapping[str, Any], wrong: list[str]) -> RopeScalingConfig:
    kind = given.get("rope_type", given.get("type", "default"))
    ignored = {"rope_type", "type", "rope_theta", *(_LLAMA3 if kind == "llama3" else ())}
    if kind not in ("default", "llama3"):
        wrong.append(f"{key}.rope_type={kind!r}: RoPE is not scaled in this way here, only by llama3")
        return RopeScalingConfig()
    for name, value in given.items():
        if name not in ignored and value is not None and not (name == "partial_rotary_factor" and value == 1):
            wrong.append(f"{key}.{name}={value!r} is not known here with rope_type {kind}")
    if kind == "default":
        return RopeScalingConfig()
    values: dict[str, Any] = {}
    for name, ours in _LLAMA3.items():
        value = given.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            wrong.append(f"{key}.{name}={value!r}: expected a number above 0")
        else:
            values[ours] = int(value) if ours == "context" else float(value)
    return RopeScalingConfig("llama3", **values)


def _no_rope_every(theirs: Mapping[str, Any], wrong: list[str]) -> int:
    """`model.no_rope_every` that gives their list of layers; 0 where every layer has RoPE."""
    layers, interval = theirs["num_hidden_layers"], value_of(theirs, "no_rope_layer_interval")
    given = value_of(theirs, "no_rope_layers")
    if given is None:
        if not _is_whole(interval):
            wrong.append(f"no_rope_layer_interval={interval!r}: expected a number above 0")
            return 0
        given = [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(given, list) or len(given) < layers or not set(given) <= {0, 1}:
        wrong.append(f"no_rope_layers={given!r}: expected 1 (RoPE) or 0 for each of {layers} layers")
        return 0
    given = given[:layers]
    every = given.index(0) + 1 if 0 in given else 0
    if every == 1 or (every and given != [int((i + 1) % every != 0) for i in range(layers)]):
        wrong.append(f"no_rope_layers={given!r}: only every n-th layer can be without RoPE here, n at least 2")
        return 0
    return every


def _window(theirs: Mapping[str, Any], family: Family, wrong: list[str]) -> int | None:
    """A sliding window is as if absent where no row is longer."""
    types = theirs.get("layer_types")
    if types is not None and (not isinstance(types, list) or set(types) != {"full_attention"}):
        wrong.append(f"layer_types={types!r}: only full_attention is computed here")
    window = value_of(theirs, "sliding_window")
    if window is None or (family.window_switch and not value_of(theirs, "use_sliding_window")):
        return None
    if not _is_whole(window):
        wrong.append(f"sliding_window={window!r}: expected a number above 0")
        return None
    return int(window)
