"""The parts of the oracle: RMSNorm, RoPE, attention under a dense mask, SwiGLU, and the pre-norm block.

Everything works on one row: hidden states are [n, d], without a batch axis, in any floating dtype.  Norms, softmax
and RoPE run in float32 at least, in float64 for float64 models.  Clarity over speed: masks are dense bool matrices.
"""

from typing import Any

import torch
from torch import Tensor, nn

from megatron_lst.config.schema import RopeScalingConfig
from megatron_lst.rope import scaled


def wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 -> float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; computed in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x_wide = wide(x)
        scale = torch.rsqrt(x_wide.pow(2).mean(-1, keepdim=True) + self.eps)  # [..., 1]
        return (x_wide * scale * wide(self.weight)).to(x.dtype)


def rotate(x: Tensor, position: Tensor, theta: float, scaling: RopeScalingConfig | None = None) -> Tensor:
    """RoPE on head pairs (i, i + hd/2), the rotate-half form of Llama and Megatron.

    Args:
        x: [n, heads, hd].
        position: [n], integer.
    """
    half = x.shape[-1] // 2
    x_wide = wide(x)
    exponent = torch.arange(half, dtype=x_wide.dtype, device=x.device) * 2 / x.shape[-1]
    angle = position.to(x_wide.dtype)[:, None] * scaled(1.0 / theta**exponent, scaling)  # [n, hd / 2]
    cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
    first, second = x_wide[..., :half], x_wide[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention under a dense mask.

    Args:
        q: [n, heads, hd].
        k, v: [m, kv_heads, hd]; query head i reads key/value head i // (heads / kv_heads).
        mask: bool [n, m], true where query n may see key m; no row is empty.

    Returns:
        [n, heads * hd].
    """
    assert bool(mask.any(-1).all()), "a query sees no key at all: softmax would be NaN"
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [m, heads, hd]
    scores = torch.einsum("nhd,mhd->hnm", wide(q), wide(k)) / q.shape[-1] ** 0.5  # [heads, n, m]
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype)
    return torch.einsum("hnm,mhd->nhd", weights, v).flatten(1)


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class SelfAttention(nn.Module):
    """Multi-head attention with RoPE; grouped-query with fewer `kv_heads`; the rest on request."""

    def __init__(
        self,
        size: int,
        heads: int,
        kv_heads: int,
        theta: float,
        eps: float,
        qk_norm: bool = False,
        head_size: int | None = None,
        qkv_bias: bool = False,
        scaling: RopeScalingConfig | None = None,
        rope: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size, self.theta = heads, kv_heads, head_size or size // heads, theta
        self.scaling, self.rope = scaling, rope
        self.q_proj = linear(size, heads * self.head_size, qkv_bias)
        self.k_proj = linear(size, kv_heads * self.head_size, qkv_bias)
        self.v_proj = linear(size, kv_heads * self.head_size, qkv_bias)
        self.o_proj = linear(heads * self.head_size, size)
        if qk_norm:
            self.q_norm = RMSNorm(self.head_size, eps)
            self.k_norm = RMSNorm(self.head_size, eps)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (self.heads, self.head_size))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_size))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_size))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            q, k = (rotate(x, position, self.theta, self.scaling) for x in (q, k))
        return self.o_proj(attend(q, k, v, mask))


class CrossAttention(nn.Module):
    """Attention of queries over another sequence, each side with its own RMSNorm; RoPE only where indices are given."""

    def __init__(self, size: int, heads: int, theta: float, eps: float) -> None:
        super().__init__()
        self.heads, self.head_size, self.theta = heads, size // heads, theta
        self.q_norm = RMSNorm(size, eps)
        self.kv_norm = RMSNorm(size, eps)
        self.q_proj = linear(size, size)
        self.k_proj = linear(size, size)
        self.v_proj = linear(size, size)
        self.o_proj = linear(size, size)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor, position: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [n, d], source [m, d], mask [n, m], position ([n], [m]) -> [n, d], without the residual."""
        source = self.kv_norm(source)
        q = self.q_proj(self.q_norm(x)).unflatten(-1, (self.heads, self.head_size))
        k = self.k_proj(source).unflatten(-1, (self.heads, self.head_size))
        v = self.v_proj(source).unflatten(-1, (self.heads, self.head_size))
        if position is not None:
            q, k = rotate(q, position[0], self.theta), rotate(k, position[1], self.theta)
        return self.o_proj(attend(q, k, v, mask))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, size: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = linear(size, ffn)
        self.up_proj = linear(size, ffn)
        self.down_proj = linear(ffn, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)) (SPEC 2.2)."""

    def __init__(
        self,
        size: int,
        heads: int,
        ffn: int,
        theta: float,
        eps: float,
        kv_heads: int | None = None,
        **options: Any,
    ) -> None:
        """`options`: those of SelfAttention."""
        super().__init__()
        self.input_norm = RMSNorm(size, eps)
        self.attention = SelfAttention(size, heads, kv_heads or heads, theta, eps, **options)
        self.post_attention_norm = RMSNorm(size, eps)
        self.mlp = SwiGLU(size, ffn)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x), mask, position)
        return x + self.mlp(self.post_attention_norm(x))
