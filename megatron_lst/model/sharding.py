"""How Megatron's local parameters are cut from the canonical weights. A local parameter is one of:

whole     the same on every tensor-parallel rank
column    rows of the matrix split over ranks (outputs sharded)
row       columns of the matrix split over ranks (inputs sharded)
qkv       q, k, v interleaved by key/value group, then split by rows
stacked   two matrices (gate and up, k and v of a cross-attention) split by rows each, then stacked
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_lst.config.schema import Config


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
            return full[0].chunk(size, dim=1)[rank]  # its columns, for inputs that are sharded
        if self.kind == "stacked":
            return torch.cat([w.chunk(size)[rank] for w in full])  # this rank's rows of the first, then of the second
        if self.kind == "qkv":
            by_group = [w.unflatten(0, (self.groups, -1)) for w in full]  # each [groups, rows of a group, columns]
            whole = torch.cat(by_group, dim=1).flatten(0, 1)  # [rows of q, k and v, columns]; biases have no columns
            return whole.chunk(size)[rank]
        return full[0].chunk(size)[rank]  # "column": its rows, for outputs that are sharded

    def blocks(self, shapes: Sequence[tuple[int, ...]], rank: int, size: int) -> list[tuple[str, range, range]]:
        """What `cut` takes, from top to bottom: (canonical weight, its rows, its columns) for each block.

        Args:
            shapes: of the full weights.
        """
        if self.kind == "row":
            columns = self.cut([torch.arange(shapes[0][1])[None]], rank, size)[0].tolist()  # the numbers of its columns
            return [(self.names[0], range(shapes[0][0]), range(columns[0], columns[-1] + 1))]
        # Weight and row of each local row, found by cutting columns of numbers [rows, 1] instead of weights: the weight
        # stands above bit 40, the row below.
        numbers = [(torch.arange(shape[0]) + (i << 40))[:, None] for i, shape in enumerate(shapes)]
        local = self.cut(numbers, rank, size)[:, 0]  # [local rows]
        # A block ends where the next number is not the next row of the same weight.
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
            halves = [s.chunk(2) for s in shards]  # of each rank: its rows of the first matrix, then of the second
            return [torch.cat([h[i] for h in halves]) for i in range(2)]
        joined = torch.cat(list(shards))  # [rows of all names, columns]
        if self.kind == "qkv":
            by_group = joined.unflatten(0, (self.groups, -1))  # [groups, rows of a group, columns]
            parts = by_group.split([shape[0] // self.groups for shape in shapes], dim=1)
            return [p.flatten(0, 1) for p in parts]  # each [its rows, columns]
        return [joined]


_LAYER = {
    "input_layernorm.weight": (("input_norm",), "whole"),
    "self_attention.linear_qkv.weight": (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "qkv"),
    "self_attention.linear_qkv.bias": (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "qkv"),
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
        suffix = rest.rpartition(".")[2]
        return ShardSpec(tuple(f"{prefix}{n}.{suffix}" for n in names), kind, groups)  # type: ignore[arg-type]
    if name.endswith("norm.weight"):
        return ShardSpec((name,), "whole")
    if name.endswith("kv_proj.weight"):
        return ShardSpec(tuple(name.replace("kv_proj", part) for part in ("k_proj", "v_proj")), "stacked")
    return ShardSpec((name,), "row" if name.endswith("o_proj.weight") else "column")
