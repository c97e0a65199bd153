"""The building blocks: RMSNorm, rotary tables, attention over intervals, and one transformer layer made of them."""

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor, nn

from lst_kernels import interval_attention, rotary
from megatron_lst.config.schema import RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.parallel import accelerators
from megatron_lst.rope import scaled


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension in float32, with what sequence parallelism needs to know.

    Args:
        config: only `sequence_parallel` is read: each rank then sees part of the positions, and the weight's gradient
            is summed over the tensor-parallel group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, device=torch.cuda.current_device(), dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


def norm_class(choice: str) -> type:
    """The class that `engine.norm` asks for; called as `cls(config=, hidden_size=, eps=)`."""
    name = accelerators.choose("norm", choice)
    if name == "torch":
        return RMSNorm
    fused = accelerators.probe("norm", name)
    assert fused is not None, "choose() gives only what is there"

    class FusedRMSNorm(fused):  # type: ignore[misc,valid-type]
        def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
            super().__init__(hidden_size, eps=eps)
            self.to(device=torch.cuda.current_device(), dtype=config.params_dtype)
            self.weight.sequence_parallel = config.sequence_parallel

    return FusedRMSNorm


def rotary_tables(positions: Tensor, head_size: int, theta: float, scaling: RopeScalingConfig | None = None) -> Tensor:
    """Cosines and sines of the rotary embedding. positions: int [N] -> float32 [2, N, head_size / 2]."""
    exponent = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size  # [D / 2]
    angles = positions.float()[:, None] * scaled(theta**-exponent, scaling)[None]  # [N, D / 2]
    return torch.stack((angles.cos(), angles.sin()))


class IntervalCoreAttention(nn.Module):
    """Megatron-core's core attention, where the mask is one interval of keys for each query.

    `attention_mask` is int32 [2, N]: first visible key and the key after the last (SPEC 1). Nothing is masked twice:
    documents, causality and windows are all in the intervals.  `attention_bias` is not a bias: it is the argument that
    Megatron-core hands through untouched, and brings the `rotary_tables`.  Its own rotary embedding stays out of use,
    for it is a dozen operations where `lst_kernels.rotary` is one.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, **_: Any) -> None:
        super().__init__()
        self.config = config
        self.turns = not (config.no_rope_freq and config.no_rope_freq[layer_number - 1])  # type: ignore[index]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        attention_bias: Tensor,
        packed_seq_params: Any = None,
        **_: Any,
    ) -> Tensor:
        """query [N, 1, H, D]; key, value [N, 1, Hk, D]; rotary tables [2, N, D / 2] -> [N, 1, H * D]."""
        query, key, value = (x.squeeze(1) for x in (query, key, value))  # [N, heads, D] each
        if self.turns:
            query, key = (rotary(x, attention_bias[0], attention_bias[1]) for x in (query, key))
        out = self.attend(query, key, value, attention_mask, packed_seq_params)
        return out.reshape(out.shape[0], 1, -1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, documents: Any) -> Tensor:
        """query [N, H, D]; key, value [N, Hk, D]; `documents`: their bounds, where they are given -> [N, H, D]."""
        return interval_attention(query, key, value, mask[0], mask[1])


class FlashCoreAttention(IntervalCoreAttention):
    """The same for the global transformer through flash-attn: its intervals are causal documents and nothing else."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, documents: Any) -> Tensor:
        """See IntervalCoreAttention; the documents say what the mask says."""
        attend = accelerators.probe("attention", "flash_attn")
        assert attend is not None, "choose() gives only what is there"
        bounds, longest = documents.cu_seqlens_q, documents.max_seqlen_q
        # Without `deterministic` its backward pass adds in another order each time.
        return attend(query, key, value, bounds, bounds, longest, longest, causal=True, deterministic=True)


def global_attention(choice: str, dtype: torch.dtype) -> type[IntervalCoreAttention]:
    """The core attention of the global transformer that `engine.attention` asks for.

    Raises:
        UserError: flash_attn is not there, or is asked for in float32, which it does not have.
    """
    if accelerators.choose("attention", choice) != "flash_attn":
        return IntervalCoreAttention
    if dtype == torch.float32:
        raise UserError("engine.attention=flash_attn needs training.precision=bf16; use engine.attention=auto")
    return FlashCoreAttention


def layer_spec(
    norm: type,
    qk_norm: bool = False,
    attention: type = IntervalCoreAttention,
    linear: tuple[type, type] = (ColumnParallelLinear, RowParallelLinear),
) -> ModuleSpec:
    """One pre-norm layer: RMSNorm, attention over intervals with RoPE, RMSNorm, SwiGLU (SPEC 2.2, 3).

    Args:
        linear: the classes of column- and row-parallel matrices.
    """
    head_norm = norm if qk_norm else IdentityOp
    column, row = linear
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.arbitrary},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=attention,
                    linear_proj=row,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
            mlp_bda=get_bias_dropout_add,
        ),
    )
