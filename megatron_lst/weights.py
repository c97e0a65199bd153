"""Canonical weights: their names and shapes. [out, in] matrices; biases under `qkv_bias` alone.

These are the names of `reference`, of exports and of `inference`; each engine maps its own shards to them.
"""

from collections.abc import Mapping

from torch import Tensor

from megatron_lst.config.schema import Config, ModelConfig
from megatron_lst.errors import UserError


def canonical_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every weight of the configured model: canonical name -> shape, in the order of the forward pass."""
    model, vocabulary = config.model, config.vocabulary.padded_size
    d, k, dg = model.local_hidden, model.queries, model.hidden
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(prefix: str, width: int, q: int, kv: int, ffn: int) -> None:
        shapes[f"{prefix}input_norm.weight"] = (width,)
        is_global = prefix.startswith("global_transformer.")
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{prefix}attention.{name}_proj.weight"] = (rows, width)
            if is_global and model.qkv_bias:
                shapes[f"{prefix}attention.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}attention.o_proj.weight"] = (width, q)
        if is_global and model.qk_norm:
            head = (model.global_head_size,)
            shapes[f"{prefix}attention.q_norm.weight"] = shapes[f"{prefix}attention.k_norm.weight"] = head
        shapes[f"{prefix}post_attention_norm.weight"] = (width,)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (ffn, width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, ffn)

    def cross(prefix: str) -> None:
        shapes[f"{prefix}q_norm.weight"] = shapes[f"{prefix}kv_norm.weight"] = (d,)
        for name in "qkvo":
            shapes[f"{prefix}{name}_proj.weight"] = (d, d)

    def trunk() -> None:
        q, kv = (heads * model.global_head_size for heads in (model.heads, model.global_kv_heads))
        for i in range(model.layers):
            layer(f"global_transformer.layers.{i}.", dg, q, kv, model.global_ffn)

    if model.kind == "baseline":
        shapes["embedding.weight"] = (vocabulary, dg)
        trunk()
        shapes["norm.weight"], shapes["head.weight"] = (dg,), (vocabulary, dg)
        return shapes
    shapes["embedding.weight"] = (vocabulary, d)
    for i in range(model.encoder_layers):
        layer(f"encoder.layers.{i}.", d, d, d, model.local_ffn_size)
    shapes["encoder.pool_proj.weight"] = (k * d, d)
    cross("encoder.cross_attention.")
    if k * d != dg:
        shapes["encoder.output_proj.weight"] = (dg, k * d)
    trunk()
    if model.decoder_input == "embedding":
        shapes["decoder.embedding.weight"] = (vocabulary, d)
    shapes["decoder.unit_proj.weight"] = (k * d, dg)
    for i in range(model.decoder_layers):
        cross(f"decoder.layers.{i}.cross_attention.")
        layer(f"decoder.layers.{i}.", d, d, d, model.local_ffn_size)
    shapes["decoder.norm.weight"], shapes["decoder.head.weight"] = (d,), (vocabulary, d)
    if model.text_path == "direct":
        shapes["text_embedding.weight"] = shapes["text_head.weight"] = (vocabulary, dg)
        shapes["text_norm.weight"] = (dg,)
    return shapes


def text_weights(config: ModelConfig) -> tuple[str, ...]:
    """The weights that a language model's text table, final norm and head fill; empty where there is no place."""
    names = ("embedding.weight", "norm.weight", "head.weight")
    if config.kind == "baseline":
        return names
    return tuple(f"text_{name}" for name in names) if config.text_path == "direct" else ()


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes.

    Raises:
        UserError: lists every mismatch.
    """
    wrong = [f"{name}: missing" for name in shapes if name not in weights]
    wrong += [f"{name}: not of this model" for name in weights if name not in shapes]
    wrong += [
        f"{name}: {tuple(weights[name].shape)} where this model has {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if wrong:
        raise UserError("These weights do not fit this model:\n  " + "\n  ".join(wrong))
