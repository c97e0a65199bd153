"""Blocks with the canonical weight names, over packed ragged axes (SPEC 2, 3, 5).

An `Axis` says which sequence each packed entry belongs to, where it stands, and which entries of its own sequence it
may see.  Modules hold weights; how the products are computed is the `Batched` or `RowByRow` arithmetic's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from megatron_lst.config.schema import ModelConfig
from megatron_lst.inference.arithmetic import Batched, Intervals, Rotation, SlotMask, rotate
from megatron_lst.inference.cache import LayerCache, Places


@dataclass(frozen=True)
class Axis:
    """Packed entries of one kind (tokens, units, speech-mode tokens).

    Attributes:
        queries: entries of each sequence and what each sees.
        rotation: RoPE of each entry; None where nothing is rotated.
    """

    queries: Intervals | SlotMask
    rotation: Rotation | None


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, math: Batched) -> Tensor:
        return math.norm(x, self.weight, self.eps)


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor, math: Batched) -> Tensor:
        return math.linear(x, self.weight)


class Table(nn.Module):
    """An embedding table."""

    def __init__(self, entries: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, size))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


class SelfAttention(nn.Module):
    def __init__(self, size: int, heads: int, kv_heads: int, eps: float, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, size // heads
        self.q_proj = Projection(size, size)
        self.k_proj = Projection(size, kv_heads * self.head_size)
        self.v_proj = Projection(size, kv_heads * self.head_size)
        self.o_proj = Projection(size, size)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = Norm(self.head_size, eps)
            self.k_norm = Norm(self.head_size, eps)

    def forward(self, x: Tensor, axis: Axis, store: LayerCache, math: Batched) -> Tensor:
        q = self.q_proj(x, math).unflatten(-1, (self.heads, self.head_size))
        k = self.k_proj(x, math).unflatten(-1, (self.kv_heads, self.head_size))
        v = self.v_proj(x, math).unflatten(-1, (self.kv_heads, self.head_size))
        if self.qk_norm:
            q, k = self.q_norm(q, math), self.k_norm(k, math)
        assert axis.rotation is not None, "self-attention rotates queries and keys"
        q, k = rotate(torch.cat([q, k], 1), axis.rotation).split([self.heads, self.kv_heads], 1)
        assert axis.queries.places is not None, "every query of self-attention is an entry too"
        store.extend(axis.queries.places, k, v)
        out = self.o_proj(math.attend(q, axis.queries, store), math)
        store.trim()
        return out


class SwiGLU(nn.Module):
    def __init__(self, size: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = Projection(size, ffn)
        self.up_proj = Projection(size, ffn)
        self.down_proj = Projection(ffn, size)

    def forward(self, x: Tensor, math: Batched) -> Tensor:
        return math.swiglu(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        size: int,
        heads: int,
        ffn: int,
        eps: float,
        kv_heads: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.input_norm = Norm(size, eps)
        self.attention = SelfAttention(size, heads, kv_heads or heads, eps, qk_norm)
        self.post_attention_norm = Norm(size, eps)
        self.mlp = SwiGLU(size, ffn)

    def forward(self, x: Tensor, axis: Axis, store: LayerCache, math: Batched) -> Tensor:
        x = x + self.attention(self.input_norm(x, math), axis, store, math)
        return x + self.mlp(self.post_attention_norm(x, math), math)


class CrossAttention(nn.Module):
    """Projections and norms of a cross-attention; who attends to what is the caller's."""

    def __init__(self, size: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads, self.head_size = heads, size // heads
        self.q_norm = Norm(size, eps)
        self.kv_norm = Norm(size, eps)
        self.q_proj = Projection(size, size)
        self.k_proj = Projection(size, size)
        self.v_proj = Projection(size, size)
        self.o_proj = Projection(size, size)

    def queries(self, x: Tensor, math: Batched) -> Tensor:
        return self.q_proj(self.q_norm(x, math), math).unflatten(-1, (self.heads, self.head_size))

    def keys_values(self, source: Tensor, math: Batched) -> tuple[Tensor, Tensor]:
        source = self.kv_norm(source, math)
        k = self.k_proj(source, math).unflatten(-1, (self.heads, self.head_size))
        return k, self.v_proj(source, math).unflatten(-1, (self.heads, self.head_size))


class PatchPooling(nn.Module):
    """The encoder's layers, pooling and cross-attention inside each unit (SPEC 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, k, eps = config.local_hidden, config.queries, config.norm_eps
        self.layers = nn.ModuleList(
            Block(d, config.local_heads, config.local_ffn_size, eps) for _ in range(config.encoder_layers)
        )
        self.pool_proj = Projection(d, k * d)
        self.cross_attention = CrossAttention(d, config.local_heads, eps)
        self.output_proj = Projection(k * d, config.hidden) if k * d != config.hidden else None

    def states(self, x: Tensor, axis: Axis, stores: Sequence[LayerCache], math: Batched) -> Tensor:
        """Token embeddings [n, d_l] -> H [n, d_l]."""
        for layer, store in zip(self.layers, stores, strict=True):
            x = layer(x, axis, store, math)
        return x

    def patches(self, h: Tensor, lengths: np.ndarray, math: Batched) -> Tensor:
        """Patch embeddings. h [sum(lengths), d_l], the units' tokens one unit after the other -> [m, d_g]."""
        starts = np.cumsum(lengths) - lengths
        k, v = self.cross_attention.keys_values(h, math)
        out = h.new_empty(len(lengths), self.config.queries * self.config.local_hidden)
        for group in math.unit_groups(lengths):
            chosen = torch.from_numpy(group).to(h.device)
            out[chosen] = self._pool(h, k, v, starts[group], lengths[group], math)
        return self.project(out, math)

    def project(self, pooled: Tensor, math: Batched) -> Tensor:
        """[m, k * d_l] -> patch embeddings [m, d_g]."""
        return pooled if self.output_proj is None else self.output_proj(pooled, math)

    def _pool(self, h: Tensor, k: Tensor, v: Tensor, starts: np.ndarray, lengths: np.ndarray, math: Batched) -> Tensor:
        """Units of similar length, padded to the longest by repeating their first token, which is masked."""
        first, size = (torch.from_numpy(x).to(h.device)[:, None] for x in (starts, lengths))
        column = torch.arange(int(lengths.max()), device=h.device)
        mask = column < size
        index = torch.where(mask, first + column, first)
        return self.pool(h[index], k[index], v[index], mask, math)

    def pool(self, members: Tensor, k: Tensor, v: Tensor, mask: Tensor, math: Batched) -> Tensor:
        """Units of at most L tokens -> [m, k * d_l], before the output projection.

        Args:
            members: [m, L, d_l], padded with tokens of the same unit; k, v: [m, L, heads, hd].
            mask: bool [m, L], False on padding.
        """
        if self.config.pooling == "max":
            pooled = members.amax(1)
        else:
            pooled = members.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)
        q = self.pool_proj(pooled, math).view(-1, members.shape[-1])
        queries = self.cross_attention.queries(q, math).unflatten(0, (-1, self.config.queries))
        seen = math.attend_padded(queries, k, v, mask).flatten(0, 1)
        out = self.cross_attention.o_proj(seen, math) + (2 if self.config.double_residual else 1) * q
        return out.view(len(members), -1)


class DecoderLayer(Block):
    """Cross-attention to closed units first, then the local block (SPEC 5)."""

    def __init__(self, config: ModelConfig) -> None:
        d, heads = config.local_hidden, config.local_heads
        super().__init__(d, heads, config.local_ffn_size, config.norm_eps)
        self.cross_attention = CrossAttention(d, heads, config.norm_eps)

    def push(self, source: Tensor, by: Rotation | None, places: Places, store: LayerCache, math: Batched) -> None:
        """Keys and values of newly closed units. source [m * k, d_l], rotated with `cross_rope`."""
        k, v = self.cross_attention.keys_values(source, math)
        if by is not None:
            k = rotate(k, by)
        store.extend(places, k, v)

    def look(self, x: Tensor, over_units: Axis, residual: int, store: LayerCache, math: Batched) -> Tensor:
        """residual * x + cross-attention of tokens x [n, d_l] to the units that each may see."""
        q = self.cross_attention.queries(x, math)
        if over_units.rotation is not None:
            q = rotate(q, over_units.rotation)
        out = self.cross_attention.o_proj(math.attend(q, over_units.queries, store), math)
        return residual * x + out


class Decoder(nn.Module):
    """The decoder's weights (SPEC 5)."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        d = config.local_hidden
        if config.decoder_input == "embedding":
            self.embedding = Table(vocabulary_size, d)
        self.unit_proj = Projection(config.hidden, config.queries * d)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = Norm(d, config.norm_eps)
        self.head = Projection(d, vocabulary_size)
        self.residual = 2 if config.double_residual else 1

    def states(
        self,
        x: Tensor,
        local: Axis,
        over_units: Axis,
        cross: Sequence[LayerCache],
        stores: Sequence[LayerCache],
        math: Batched,
    ) -> Tensor:
        """What enters the decoder [n, d_l] -> final hidden states [n, d_l], normed."""
        for layer, units, own in zip(self.layers, cross, stores, strict=True):
            assert isinstance(layer, DecoderLayer)
            x = layer.look(x, over_units, self.residual, units, math)
            x = layer(x, local, own, math)
            units.trim()
        return self.norm(x, math)

    def push(self, g: Tensor, by: Rotation | None, places: Places, cross: Sequence[LayerCache], math: Batched) -> None:
        """Project newly closed units [m, d_g] once and hand their keys and values to every layer."""
        source = self.unit_proj(g, math).view(-1, self.norm.weight.shape[0])
        for layer, store in zip(self.layers, cross, strict=True):
            assert isinstance(layer, DecoderLayer)
            layer.push(source, by, places, store, math)


class GlobalTransformer(nn.Module):
    """Causal over the units of each sequence, no final norm (SPEC 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(
                config.hidden,
                config.heads,
                config.global_ffn,
                config.norm_eps,
                config.global_kv_heads,
                config.qk_norm,
            )
            for _ in range(config.layers)
        )

    def forward(self, e: Tensor, axis: Axis, stores: Sequence[LayerCache], math: Batched) -> Tensor:
        for layer, store in zip(self.layers, stores, strict=True):
            e = layer(e, axis, store, math)
        return e
