"""The parts of the inference model, under the canonical weight names (SPEC 2, 3, 5).

Entries of all sequences lie end to end on one packed axis.  An attention takes three things: the entries [n, d], their
`Positions` (where they stand, what they may read), and the layer's cache, which appends and reads.

    n tokens, m units, k queries a unit, d_l and d_g local and global width, hd head size
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.inference.cache import LayerCache, Places, Visible, attention
from megatron_lst.rope import scaled


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of some positions, computed once for all layers: cos and sin [n, 1, hd], sin signed."""

    cos: Tensor
    sin: Tensor


def rope_at(
    position: Tensor, head_size: int, theta: float, dtype: torch.dtype, scaling: RopeScalingConfig | None = None
) -> Rope:
    """position int [n] -> cosines and sines in `dtype`."""
    exponent = torch.arange(head_size // 2, dtype=dtype, device=position.device) * 2 / head_size  # [hd / 2]
    angle = (position.to(dtype)[:, None] * scaled(1.0 / theta**exponent, scaling))[:, None, :]  # [n, 1, hd / 2]
    cos, sin = angle.cos(), angle.sin()
    return Rope(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate head pairs (i, i + hd/2), as Llama and Megatron do. x [n, heads, hd]."""
    wide = x if x.dtype == rope.cos.dtype else x.to(rope.cos.dtype)
    swapped = wide.roll(x.shape[-1] // 2, -1)  # second half, first half
    return (wide * rope.cos + swapped * rope.sin).to(x.dtype)


@dataclass(frozen=True)
class Positions:
    """Where the entries of a call stand.

    Attributes:
        rope: of each entry; None where nothing is rotated.
        visible: what each may read.
    """

    rope: Rope | None
    visible: Visible


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class SelfAttention(nn.Module):
    """Grouped-query attention with RoPE, where `Positions` bring one; QK-norm and biases on request."""

    def __init__(
        self,
        size: int,
        heads: int,
        kv_heads: int,
        eps: float,
        qk_norm: bool = False,
        head_size: int | None = None,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size or size // heads
        self.q_proj = linear(size, heads * self.head_size, qkv_bias)
        self.k_proj = linear(size, kv_heads * self.head_size, qkv_bias)
        self.v_proj = linear(size, kv_heads * self.head_size, qkv_bias)
        self.o_proj = linear(heads * self.head_size, size)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = nn.RMSNorm(self.head_size, eps)
            self.k_norm = nn.RMSNorm(self.head_size, eps)

    def forward(self, x: Tensor, at: Positions, cache: LayerCache) -> Tensor:
        q = self.q_proj(x).view(-1, self.heads, self.head_size)
        k = self.k_proj(x).view(-1, self.kv_heads, self.head_size)
        v = self.v_proj(x).view(-1, self.kv_heads, self.head_size)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if at.rope is not None:
            both = rotate(torch.cat([q, k], 1), at.rope)
            q, k = both[:, : self.heads], both[:, self.heads :]
        assert at.visible.places is not None, "every query of self-attention is an entry too"
        cache.append(at.visible.places, k, v)
        out = cache.attend(q, at.visible)
        cache.trim()
        return self.o_proj(out)


class SwiGLU(nn.Module):
    def __init__(self, size: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = linear(size, ffn)
        self.up_proj = linear(size, ffn)
        self.down_proj = linear(ffn, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, size: int, heads: int, ffn: int, eps: float, kv_heads: int | None = None, **options: Any
    ) -> None:
        """`options`: those of SelfAttention."""
        super().__init__()
        self.input_norm = nn.RMSNorm(size, eps)
        self.attention = SelfAttention(size, heads, kv_heads or heads, eps, **options)
        self.post_attention_norm = nn.RMSNorm(size, eps)
        self.mlp = SwiGLU(size, ffn)

    def forward(self, x: Tensor, at: Positions, cache: LayerCache) -> Tensor:
        x = x + self.attention(self.input_norm(x), at, cache)
        return x + self.mlp(self.post_attention_norm(x))


class GlobalTransformer(nn.Module):
    """Causal over the units of each sequence, no final norm (SPEC 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, heads, ffn, eps = config.hidden, config.heads, config.global_ffn, config.norm_eps
        options = {"qk_norm": config.qk_norm, "head_size": config.head_size, "qkv_bias": config.qkv_bias}
        self.layers = nn.ModuleList(
            Block(size, heads, ffn, eps, config.global_kv_heads, **options) for _ in range(config.layers)
        )

    def forward(self, e: Tensor, at: Positions, cache: Sequence[LayerCache]) -> Tensor:
        """[m, d_g] -> [m, d_g]."""
        unturned = Positions(None, at.visible)
        for i, (layer, layer_cache) in enumerate(zip(self.layers, cache, strict=True)):
            e = layer(e, at if self.config.has_rope(i) else unturned, layer_cache)
        return e


class CrossAttention(nn.Module):
    """Projections and norms of a cross-attention; who attends to what is the caller's."""

    def __init__(self, size: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads, self.head_size = heads, size // heads
        self.q_norm = nn.RMSNorm(size, eps)
        self.kv_norm = nn.RMSNorm(size, eps)
        self.q_proj = linear(size, size)
        self.k_proj = linear(size, size)
        self.v_proj = linear(size, size)
        self.o_proj = linear(size, size)

    def queries(self, x: Tensor) -> Tensor:
        """[n, d_l] -> [n, heads, hd]."""
        return self.q_proj(self.q_norm(x)).view(-1, self.heads, self.head_size)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """[..., d_l] -> keys and values [..., heads, hd]."""
        source = self.kv_norm(source)
        shape = (*source.shape[:-1], self.heads, self.head_size)
        return self.k_proj(source).view(shape), self.v_proj(source).view(shape)


class PatchEncoder(nn.Module):
    """Local layers over tokens, then pooling and cross-attention inside each unit (SPEC 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, k, eps = config.local_hidden, config.queries, config.norm_eps
        self.layers = nn.ModuleList(
            Block(d, config.local_heads, config.local_ffn_size, eps) for _ in range(config.encoder_layers)
        )
        self.pool_proj = linear(d, k * d)
        self.cross_attention = CrossAttention(d, config.local_heads, eps)
        self.output_proj = linear(k * d, config.hidden) if k * d != config.hidden else None

    def states(self, x: Tensor, at: Positions, cache: Sequence[LayerCache]) -> Tensor:
        """Token embeddings [n, d_l] -> H [n, d_l]."""
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, at, layer_cache)
        return x

    def patches(self, h: Tensor, lengths: np.ndarray) -> Tensor:
        """Patch embeddings. h [sum(lengths), d_l], the units' tokens one unit after the other -> [m, d_g]."""
        starts = np.cumsum(lengths) - lengths  # [m], the first token of each unit
        k, v = self.cross_attention.keys_values(h)
        pooled = h.new_empty(len(lengths), self.config.queries * self.config.local_hidden)
        # Units of similar length together (1, 2, 3-4, 5-8, ...), padded to the longest: few calls, little waste.
        doublings = np.ceil(np.log2(lengths)).astype(int)
        for value in np.unique(doublings):
            group = np.flatnonzero(doublings == value)
            first, size = (torch.from_numpy(x[group]).to(h.device)[:, None] for x in (starts, lengths))
            column = torch.arange(int(lengths[group].max()), device=h.device)  # [L]
            inside = column < size  # [units, L]
            index = torch.where(inside, first + column, first)  # padding repeats the unit's first token
            chosen = torch.from_numpy(group).to(h.device)
            pooled[chosen] = self.pool(h[index], k[index], v[index], inside)
        return self.project(pooled)

    def pool(self, members: Tensor, k: Tensor, v: Tensor, inside: Tensor) -> Tensor:
        """Units of at most L tokens -> [m, k * d_l], before the output projection.

        Args:
            members: [m, L, d_l], padded with tokens of the same unit; k, v: [m, L, heads, hd].
            inside: bool [m, L], False on padding.
        """
        if self.config.pooling == "max":
            pooled = members.amax(1)
        else:
            pooled = members.masked_fill(~inside[..., None], 0).sum(1) / inside.sum(1, keepdim=True)
        q = self.pool_proj(pooled).view(-1, members.shape[-1])  # [m * k, d_l]
        queries = self.cross_attention.queries(q).unflatten(0, (-1, self.config.queries))
        seen = attention(queries, k, v, inside[:, None]).flatten(0, 1)  # [m * k, d_l]
        out = self.cross_attention.o_proj(seen) + (2 if self.config.double_residual else 1) * q
        return out.view(len(members), -1)

    def project(self, pooled: Tensor) -> Tensor:
        """[m, k * d_l] -> patch embeddings [m, d_g]."""
        return pooled if self.output_proj is None else self.output_proj(pooled)


class DecoderLayer(Block):
    """Cross-attention to closed units first, then the local block (SPEC 5)."""

    def __init__(self, config: ModelConfig) -> None:
        d, heads = config.local_hidden, config.local_heads
        super().__init__(d, heads, config.local_ffn_size, config.norm_eps)
        self.cross_attention = CrossAttention(d, heads, config.norm_eps)

    def append_units(self, source: Tensor, rope: Rope | None, places: Places, cache: LayerCache) -> None:
        """Keys and values of newly closed units. source [m * k, d_l], rotated with `cross_rope`."""
        k, v = self.cross_attention.keys_values(source)
        cache.append(places, k if rope is None else rotate(k, rope), v)

    def attend_units(self, x: Tensor, units: Positions, cache: LayerCache) -> Tensor:
        """Cross-attention of tokens x [n, d_l] to the units that each may see, without the residual."""
        q = self.cross_attention.queries(x)
        q = q if units.rope is None else rotate(q, units.rope)
        return self.cross_attention.o_proj(cache.attend(q, units.visible))


class PatchDecoder(nn.Module):
    """From what enters the decoder and the newest closed units to the hidden states of the head (SPEC 5)."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        d = config.local_hidden
        if config.decoder_input == "embedding":
            self.embedding = nn.Embedding(vocabulary_size, d)
        self.unit_proj = linear(config.hidden, config.queries * d)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.RMSNorm(d, config.norm_eps)
        self.head = linear(d, vocabulary_size)
        self.residual = 2 if config.double_residual else 1

    def append_units(self, g: Tensor, rope: Rope | None, places: Places, cross: Sequence[LayerCache]) -> None:
        """Project newly closed units [m, d_g] once and hand their keys and values to every layer."""
        source = self.unit_proj(g).view(-1, self.head.in_features)  # [m * k, d_l]
        for layer, units_cache in zip(self.layers, cross, strict=True):
            assert isinstance(layer, DecoderLayer)
            layer.append_units(source, rope, places, units_cache)

    def states(
        self,
        x: Tensor,
        local: Positions,
        units: Positions,
        cache: Sequence[LayerCache],
        cross: Sequence[LayerCache],
    ) -> Tensor:
        """What enters the decoder [n, d_l] -> final hidden states [n, d_l], normed.

        Args:
            local: among the tokens; with `cache`.
            units: over the closed units; with `cross`.
        """
        for layer, layer_cache, units_cache in zip(self.layers, cache, cross, strict=True):
            assert isinstance(layer, DecoderLayer)
            x = self.residual * x + layer.attend_units(x, units, units_cache)
            x = layer(x, local, layer_cache)
            units_cache.trim()
        return self.norm(x)
