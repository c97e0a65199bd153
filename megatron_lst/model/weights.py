"""Canonical weights: their names and shapes, and how Megatron's shards are cut from them.

The names are those of `reference` and of exports: [out, in] matrices, no biases.  A local parameter is one of:

    whole     the same on every tensor-parallel rank
    column    rows of the matrix dealt to ranks (outputs sharded)
    row       columns of the matrix dealt to ranks (inputs sharded)
    qkv       q, k, v interleaved by key/value group, then dealt by rows
    stacked   two matrices (gate and up, k and v of a cross-attention) dealt by rows each, then stacked
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError


@dataclass(frozen=True)
class ShardSpec:
    """One local parameter in terms of canonical weights.

    Attributes:
        names: the canonical weights it is made of, in the order of `kind`.
        groups: key/value groups, for "qkv".
    """

    names: tuple[str, ...]
    kind: Literal["whole", "column", "row", "qkv", "stacked"]
    groups: int = 0

    def cut(self, full: Sequence[Tensor], rank: int, size: int) -> Tensor:
        """The local shard of tensor-parallel rank `rank` of `size`, from the full weights."""
        if self.kind == "whole":
            return full[0]
        if self.kind == "row":
            return full[0].chunk(size, dim=1)[rank]
        if self.kind == "stacked":
            return torch.cat([w.chunk(size)[rank] for w in full])
        if self.kind == "qkv":
            by_group = [w.view(self.groups, -1, w.shape[1]) for w in full]
            return torch.cat(by_group, dim=1).view(-1, full[0].shape[1]).chunk(size)[rank]
        return full[0].chunk(size)[rank]

    def blocks(self, shapes: Sequence[tuple[int, ...]], rank: int, size: int) -> list[tuple[str, range, range]]:
        """What `cut` takes, from top to bottom: (canonical weight, its rows, its columns) for each block.

        Args:
            shapes: of the full weights.
        """
        if self.kind == "row":
            columns = self.cut([torch.arange(shapes[0][1])[None]], rank, size)[0].tolist()
            return [(self.names[0], range(shapes[0][0]), range(columns[0], columns[-1] + 1))]
        # Weight and row of each local row, found by cutting columns of numbers instead of weights.
        numbers = [(torch.arange(shape[0]) + (i << 40))[:, None] for i, shape in enumerate(shapes)]
        local = self.cut(numbers, rank, size)[:, 0]
        ends = [*(torch.nonzero(local.diff() != 1)[:, 0] + 1).tolist(), len(local)]
        found = []
        for begin, end in zip([0, *ends], ends, strict=False):
            weight, row = divmod(int(local[begin]), 1 << 40)
            found.append((self.names[weight], range(row, row + end - begin), range(shapes[weight][-1])))
        return found

    def join(self, shards: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The inverse of `cut`: full weights of `shapes` from the shards of all ranks."""
        if self.kind == "whole":
            return [shards[0]]
        if self.kind == "row":
            return [torch.cat(list(shards), dim=1)]
        if self.kind == "stacked":
            halves = [s.chunk(2) for s in shards]
            return [torch.cat([h[i] for h in halves]) for i in range(2)]
        joined = torch.cat(list(shards))
        if self.kind == "qkv":
            by_group = joined.view(self.groups, -1, joined.shape[1])
            parts = by_group.split([shape[0] // self.groups for shape in shapes], dim=1)
            return [p.reshape(-1, joined.shape[1]) for p in parts]
        return [joined]


_LAYER = {
    "input_layernorm.weight": (("input_norm",), "whole"),
    "self_attention.linear_qkv.weight": (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "qkv"),
    "self_attention.linear_proj.weight": (("attention.o_proj",), "row"),
    "self_attention.q_layernorm.weight": (("attention.q_norm",), "whole"),
    "self_attention.k_layernorm.weight": (("attention.k_norm",), "whole"),
    "pre_mlp_layernorm.weight": (("post_attention_norm",), "whole"),
    "mlp.linear_fc1.weight": (("mlp.gate_proj", "mlp.up_proj"), "stacked"),
    "mlp.linear_fc2.weight": (("mlp.down_proj",), "row"),
}
_LAYER_NAME = re.compile(r"^(encoder|global_transformer|decoder)\.layers\.(\d+)\.(?:block\.)?(.+)$")


def shard_spec(name: str, config: Config, first_layer: int = 0) -> ShardSpec:
    """What the local parameter `name` of a `model.ModelChunk` is made of.

    Args:
        first_layer: number of the chunk's first global layer.
    """
    found = _LAYER_NAME.match(name)
    if found and found[3] in _LAYER:
        module, layer, rest = found[1], int(found[2]), found[3]
        names, kind = _LAYER[rest]
        is_global = module == "global_transformer"
        prefix = f"{module}.layers.{layer + first_layer if is_global else layer}."
        groups = config.model.global_kv_heads if is_global else config.model.local_heads
        return ShardSpec(tuple(f"{prefix}{n}.weight" for n in names), kind, groups)  # type: ignore[arg-type]
    if name.endswith("norm.weight"):
        return ShardSpec((name,), "whole")
    if name.endswith("kv_proj.weight"):
        return ShardSpec(tuple(name.replace("kv_proj", part) for part in ("k_proj", "v_proj")), "stacked")
    return ShardSpec((name,), "row" if name.endswith("o_proj.weight") else "column")


def canonical_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every weight of the configured model: canonical name -> shape, in the order of the forward pass."""
    model, vocabulary = config.model, config.vocabulary.padded_size
    d, k, dg = model.local_hidden, model.queries, model.hidden
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(prefix: str, width: int, kv: int, ffn: int, head: int | None = None) -> None:
        shapes[f"{prefix}input_norm.weight"] = (width,)
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            shapes[f"{prefix}attention.{name}_proj.weight"] = (rows, width)
        if head is not None:
            shapes[f"{prefix}attention.q_norm.weight"] = shapes[f"{prefix}attention.k_norm.weight"] = (head,)
        shapes[f"{prefix}post_attention_norm.weight"] = (width,)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (ffn, width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, ffn)

    def cross(prefix: str) -> None:
        shapes[f"{prefix}q_norm.weight"] = shapes[f"{prefix}kv_norm.weight"] = (d,)
        for name in "qkvo":
            shapes[f"{prefix}{name}_proj.weight"] = (d, d)

    def trunk() -> None:
        head = dg // model.heads
        for i in range(model.layers):
            kv = model.global_kv_heads * head
            layer(f"global_transformer.layers.{i}.", dg, kv, model.global_ffn, head if model.qk_norm else None)

    if model.kind == "baseline":
        shapes["embedding.weight"] = (vocabulary, dg)
        trunk()
        shapes["norm.weight"], shapes["head.weight"] = (dg,), (vocabulary, dg)
        return shapes
    shapes["embedding.weight"] = (vocabulary, d)
    for i in range(model.encoder_layers):
        layer(f"encoder.layers.{i}.", d, d, model.local_ffn_size)
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
        layer(f"decoder.layers.{i}.", d, d, model.local_ffn_size)
    shapes["decoder.norm.weight"], shapes["decoder.head.weight"] = (d,), (vocabulary, d)
    if model.text_path == "direct":
        shapes["text_embedding.weight"] = shapes["text_head.weight"] = (vocabulary, dg)
        shapes["text_norm.weight"] = (dg,)
    return shapes


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
