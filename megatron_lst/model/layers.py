"""The building blocks: RMSNorm, rotary tables, attention over intervals, SwiGLU, and one transformer layer of them."""

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core.tensor_parallel import checkpoint, get_cuda_rng_tracker
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.utils import make_viewless_tensor
from torch import Tensor, nn

from lst_kernels import interval_attention, packed_attention, rms_norm, rms_norm_residual, rotary, swiglu
from lst_kernels.libraries import DTYPES, LIBRARIES, document_attention
from megatron_lst.config.schema import RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.parallel import accelerators
from megatron_lst.parallel.weight_gradients import into_main_grad
from megatron_lst.rope import scaled


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last dimension in float32, with what sequence parallelism needs to know.

    Args:
        config: two settings are read. `sequence_parallel`: each rank sees part of the positions, and the weight's
            gradient is summed over the tensor-parallel group. `gradient_accumulation_fusion`: that gradient goes
            straight into `main_grad`, as those of linear maps do.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, device=torch.cuda.current_device(), dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.in_place = config.gradient_accumulation_fusion

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None, keep: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `normed`. The module is called, since ZeRO-3 and overlapped gathers bring its weight when it is."""
        into = into_main_grad(self.weight) if self.in_place else None
        if residual is None and not keep:
            return rms_norm(x, self.weight, self.eps or 0.0, into=into)
        return rms_norm_residual(x, self.weight, residual, self.eps or 0.0, into=into)


def normed(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm(total), total) where total = residual + x, or x without a residual. x, residual: [n, 1, d].

    Whoever reads both takes them from here: the built-in norm then adds where it norms, forward and backward.
    """
    if isinstance(norm, RMSNorm):
        return norm(x, residual, True)
    total = x if residual is None else residual + x
    return norm(total), total


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

    `attention_mask` is int32 [4, N]: first visible key and the key after the last (SPEC 1), and of each key the first
    query that sees it and the one after the last. Nothing is masked twice: documents, causality and windows are all in
    the intervals.  `attention_bias` is not a bias: it is the argument that Megatron-core hands through untouched, and
    brings the `rotary_tables`.  Its own rotary embedding stays out of use, for it is a dozen operations where
    `lst_kernels.rotary` is one.
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
        return interval_attention(query, key, value, mask[0], mask[1], seen_by=mask[2:])


class DocumentCoreAttention(IntervalCoreAttention):
    """The same for the global transformer by a library: its intervals are causal documents and nothing else."""

    library: str

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, documents: Any) -> Tensor:
        """See IntervalCoreAttention; the documents say what the mask says."""
        bounds, longest = documents.cu_seqlens_q, documents.max_seqlen_q
        return document_attention(self.library, query, key, value, bounds, longest)


class FlashCoreAttention(DocumentCoreAttention):
    """By flash-attn."""

    library = "flash_attn"


class VarlenCoreAttention(DocumentCoreAttention):
    """By PyTorch's varlen_attn."""

    library = "varlen_attn"


def global_attention(choice: str, dtype: torch.dtype, head_size: int) -> type[IntervalCoreAttention]:
    """The core attention of the global transformer that `engine.attention` asks for.

    Raises:
        UserError: a library is not there, or is asked for in float32, which it does not have.
    """
    name = accelerators.choose_attention(choice, dtype, head_size)[0]
    if name not in LIBRARIES:
        return IntervalCoreAttention
    if dtype not in DTYPES:
        raise UserError(f"engine.attention={name} needs training.precision=bf16; use engine.attention=auto")
    return {core.library: core for core in (FlashCoreAttention, VarlenCoreAttention)}[name]


class PackedSelfAttention(SelfAttention):
    """Self-attention in which queries, keys and values stay slices of one projection, and so do their gradients.

    Where a norm of heads or another core attention stands between, or a key head is shared by tensor-parallel ranks,
    Megatron-core's own way is taken.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        core, norms = self.core_attention, (self.q_layernorm, self.k_layernorm)
        self.packs = (
            type(core) is IntervalCoreAttention
            and core.turns
            and all(norm is None or isinstance(norm, IdentityOp) for norm in norms)
            and self.config.num_query_groups >= self.world_size
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, *, attention_bias: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """[n, 1, d] -> the same, and no bias. For the other arguments see IntervalCoreAttention."""
        if not self.packs:
            return super().forward(hidden_states, attention_mask, attention_bias=attention_bias, **options)

        def attend(qkv: Tensor) -> Tensor:
            groups, size = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
            (cos, sin), (start, end), seen_by = attention_bias, attention_mask[:2], attention_mask[2:]
            out = packed_attention(qkv.view(len(qkv), groups, -1), cos, sin, start, end, size, seen_by=seen_by)
            return out.reshape(len(qkv), 1, -1)

        qkv = self.linear_qkv(hidden_states)[0]  # [N, 1, G (R + 2) D]
        again = self.checkpoint_core_attention and self.training
        return self.linear_proj(checkpoint(attend, False, qkv) if again else attend(qkv))


class Layer(TransformerLayer):
    """Megatron-core's layer of one kind: pre-norm, no dropout, no bias. Residuals are added where they are normed.

    Attributes:
        adds: whether the layer adds its own residual, too; otherwise the norm that reads it next does (`add_later`).
    """

    adds = True

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        attention_bias: Tensor,
        packed_seq_params: Any = None,
        context: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[n, 1, d] -> the same, and the residual that is still to be added to it; None where the layer `adds`.

        `context` is that residual of the layer before: Megatron-core hands a second tensor of this name from layer to
        layer, for a cross-attention that it does not have here.  For the others see IntervalCoreAttention.
        """
        states, residual = normed(self.input_layernorm, hidden_states, context)
        states, _bias = self.self_attention(
            states,
            attention_mask=attention_mask,
            attention_bias=attention_bias,
            packed_seq_params=packed_seq_params,
        )
        states, residual = normed(self.pre_mlp_layernorm, states, residual)
        states = self._fed_forward(states)
        if not self.adds:
            return states, residual
        return make_viewless_tensor(residual + states, requires_grad=residual.requires_grad, keep_graph=True), None

    def _gated(self, states: Tensor) -> Tensor:
        """SwiGLU by a kernel of its own: Megatron-core's goes through torch.compile, once for every width."""
        return self.mlp.linear_fc2(swiglu(self.mlp.linear_fc1(states)[0]))[0]

    def _fed_forward(self, states: Tensor) -> Tensor:
        if not self.recompute_mlp:
            return self._gated(states)
        if self.config.fp8:
            from megatron.core.extensions.transformer_engine import te_checkpoint

            return te_checkpoint(self._gated, False, get_cuda_rng_tracker, self.pg_collection.tp, states)
        return checkpoint(self._gated, False, states)


def add_later(layers: Iterable[nn.Module]) -> None:
    """The residual of each of these layers is added by the norm that reads it next: no sum is written, then read.

    Not where whole layers are recomputed: what lies between them is kept, and would be two tensors.
    """
    for layer in layers:
        assert isinstance(layer, Layer)
        layer.adds = layer.config.recompute_granularity == "full"


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
        module=Layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=PackedSelfAttention,
                params={"attn_mask_type": AttnMaskType.arbitrary},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=attention,
                    linear_proj=row,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row)),
        ),
    )
