"""Start the global transformer from a Llama-family checkpoint on disk (Llama, Mistral, Qwen3 without biases).

The layers map one to one.  Text tables and heads map where the architecture has a place for them: the baseline, and
an LST with `text_path: direct`, whose text logits then equal the language model's.  Speech ids, markers and padding
keep their fresh weights, and so does everything that the other checkpoint does not have.
"""

import json
import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.vocabulary import Vocabulary

_LAYER = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.o_proj": "attention.o_proj",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}


@dataclass
class WarmStart:
    """What happened.

    Attributes:
        taken: our name -> theirs; a table is taken for its text rows alone.
        fresh: our weights that stay as they were.
        unused: their weights that have no place here, and why.
    """

    taken: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)

    def report(self) -> str:
        lines = [f"{len(self.taken)} weights taken, {len(self.fresh)} stay fresh, {len(self.unused)} not used"]
        groups = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in self.fresh})
        lines += [f"  fresh: {name}" for name in groups]
        lines += [f"  not used: {name}: {why}" for name, why in self.unused.items()]
        return "\n".join(lines)


def check_architecture(theirs: dict[str, Any], config: ModelConfig, vocabulary: Vocabulary) -> None:
    """Refuse a checkpoint that would not compute the same thing here.

    Raises:
        UserError: lists every difference with the key to change.
    """
    heads = theirs["num_attention_heads"]
    rope = theirs.get("rope_scaling")
    pairs = [
        ("model.hidden", config.hidden, theirs["hidden_size"]),
        ("model.layers", config.layers, theirs["num_hidden_layers"]),
        ("model.heads", config.heads, heads),
        ("model.kv_heads", config.global_kv_heads, theirs.get("num_key_value_heads") or heads),
        ("model.ffn", config.global_ffn, theirs["intermediate_size"]),
        ("model.rope_theta", config.rope_theta, float(theirs.get("rope_theta", 10000.0))),
        ("model.norm_eps", config.norm_eps, theirs.get("rms_norm_eps", 1e-6)),
        ("head size", config.hidden // config.heads, theirs.get("head_dim") or theirs["hidden_size"] // heads),
        ("model.qk_norm", config.qk_norm, theirs.get("model_type") == "qwen3"),
        ("activation", "silu", theirs.get("hidden_act", "silu")),
        ("biases", False, bool(theirs.get("attention_bias") or theirs.get("mlp_bias"))),
        ("rope scaling", None, None if rope in (None, {}) or rope.get("rope_type") == "default" else rope),
    ]
    wrong = [f"{name}: {mine!r} here, {other!r} there" for name, mine, other in pairs if mine != other]
    takes_text = config.kind == "baseline" or config.text_path == "direct"
    if takes_text and vocabulary.text_size != theirs["vocab_size"]:
        wrong.append(f"vocabulary.text_size: {vocabulary.text_size} here, {theirs['vocab_size']} there")
    if wrong:
        raise UserError("the checkpoint is of another architecture:\n  " + "\n  ".join(wrong))


def warm_start(
    folder: Path | str, weights: MutableMapping[str, Tensor], config: ModelConfig, vocabulary: Vocabulary
) -> WarmStart:
    """Overwrite fresh weights in place with those of a checkpoint folder (config.json, *.safetensors).

    Args:
        weights: canonical names, freshly initialised.

    Raises:
        UserError: another architecture, or a shape that does not fit.
        DamagedDataError: files that are missing or cannot be read.
    """
    folder = Path(folder)
    try:
        theirs = json.loads((folder / "config.json").read_text())
    except OSError as error:
        raise UserError(f"{folder}: no config.json of a Hugging Face checkpoint ({error.strerror})") from None
    except ValueError as error:
        raise DamagedDataError(f"{folder / 'config.json'}: not JSON ({error})") from None
    check_architecture(theirs, config, vocabulary)
    places = text_places(config)
    result = WarmStart()
    seen: set[str] = set()
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    seen.add(name)
                    _take(name, file.get_tensor(name), weights, places, vocabulary, result)
        except (SafetensorError, OSError) as error:
            raise DamagedDataError(f"{path}: {error}") from None
    if "lm_head.weight" not in seen and "lm_head.weight" in places and "model.embed_tokens.weight" in seen:
        _tied_head(folder, weights, places, vocabulary, result)
    missing = [n for n in weights if n.startswith("global_transformer.") and n not in result.taken]
    if missing:
        raise DamagedDataError(
            f"{folder}: the checkpoint lacks {len(missing)} weights of its layers: {missing[0]}, ..."
        )
    result.fresh = sorted(n for n in weights if n not in result.taken)
    return result


def text_places(config: ModelConfig) -> dict[str, str]:
    """Their text tables and final norm -> ours."""
    if config.kind == "baseline":
        return {
            "model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.weight",
            "lm_head.weight": "head.weight",
        }  # fmt: skip
    if config.text_path == "direct":
        return {
            "model.embed_tokens.weight": "text_embedding.weight", "model.norm.weight": "text_norm.weight",
            "lm_head.weight": "text_head.weight",
        }  # fmt: skip
    return {}


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DamagedDataError(f"{folder}: {', '.join(missing)} missing (only safetensors are read)")
    return [folder / name for name in names]


def _take(
    name: str,
    tensor: Tensor,
    weights: MutableMapping[str, Tensor],
    places: dict[str, str],
    vocabulary: Vocabulary,
    result: WarmStart,
) -> None:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if layer and layer[2] in _LAYER:
        ours = f"global_transformer.layers.{layer[1]}.{_LAYER[layer[2]]}.weight"
        if ours not in weights:
            result.unused[name] = "no such layer or norm here"
        elif weights[ours].shape != tensor.shape:
            raise UserError(f"{name}: shape {tuple(tensor.shape)}, {ours} has {tuple(weights[ours].shape)}")
        else:
            weights[ours] = tensor.to(weights[ours].dtype)
            result.taken[ours] = name
    elif name in places:
        _take_text(name, tensor, weights, places[name], vocabulary, result)
    else:
        result.unused[name] = "kept only with text_path=direct or a baseline" if name in (
            "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        ) else "no counterpart"  # fmt: skip


def _take_text(
    name: str,
    tensor: Tensor,
    weights: MutableMapping[str, Tensor],
    ours: str,
    vocabulary: Vocabulary,
    result: WarmStart,
) -> None:
    if tensor.dim() == 1:
        weights[ours] = tensor.to(weights[ours].dtype)
    else:
        rows = vocabulary.text_size
        if tensor.shape != (rows, weights[ours].shape[1]):
            raise UserError(f"{name}: shape {tuple(tensor.shape)}, expected {(rows, weights[ours].shape[1])}")
        table = weights[ours].clone()
        table[:rows] = tensor.to(table.dtype)
        weights[ours] = table
    result.taken[ours] = name


def _tied_head(
    folder: Path,
    weights: MutableMapping[str, Tensor],
    places: dict[str, str],
    vocabulary: Vocabulary,
    result: WarmStart,
) -> None:
    """A checkpoint with tied embeddings has no lm_head: the head starts from the embedding."""
    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            if "model.embed_tokens.weight" in file.keys():  # noqa: SIM118
                table = file.get_tensor("model.embed_tokens.weight")
                _take_text("model.embed_tokens.weight", table, weights, places["lm_head.weight"], vocabulary, result)
