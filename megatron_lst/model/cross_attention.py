"""Cross-attention between tokens and patches, sharded by heads over the tensor-parallel group."""

from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from lst_kernels import interval_attention, interval_attention_joint, patch_attention, rotary
from megatron_lst.model.layers import normed
from megatron_lst.model.settings import keep_uninitialised


def column_linear(
    inputs: int, outputs: int, config: TransformerConfig, group: Any, **options: Any
) -> ColumnParallelLinear:
    """A linear map without bias, its outputs sharded over `group`."""
    return ColumnParallelLinear(
        inputs, outputs, config=config, init_method=keep_uninitialised, bias=False, tp_group=group, **options
    )


class CrossAttention(MegatronModule):
    """RMSNorm on both sides, q/k/v/o projections of d_l x d_l, no residual (SPEC 2 step 5, SPEC 5).

    Keys and values are the same on every tensor-parallel rank; queries may be sharded over positions (sequence
    parallelism), which is then undone by the query projection and done again by the output projection.  One product
    makes keys and values, so that the gradient of what both come from is summed over the group once.

    Args:
        query_config: settings of the query side; its `sequence_parallel` says whether queries are sharded.
        key_config: settings of the key side, never sharded over positions.
    """

    def __init__(self, query_config: TransformerConfig, key_config: TransformerConfig, norm: type, group: Any) -> None:
        super().__init__(config=query_config)
        d = query_config.hidden_size
        self.head_size = d // query_config.num_attention_heads
        self.q_norm = norm(config=query_config, hidden_size=d, eps=query_config.layernorm_epsilon)
        self.kv_norm = norm(config=key_config, hidden_size=d, eps=key_config.layernorm_epsilon)
        self.q_proj = column_linear(d, d, query_config, group)
        self.kv_proj = column_linear(d, 2 * d, key_config, group)
        self.o_proj = RowParallelLinear(
            d,
            d,
            config=query_config,
            init_method=keep_uninitialised,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=group,
        )

    def _heads(self, x: Tensor) -> Tensor:
        """[..., n, heads * D] -> [n, heads, D]."""
        return x.reshape(-1, x.shape[-1] // self.head_size, self.head_size)

    def _project(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads of queries, keys and values, from what is normed."""
        q = self._heads(self.q_proj(queries)[0])  # [N, heads of this rank, D]
        k, v = self.kv_proj(keys)[0].chunk(2, dim=-1)  # [M, d of this rank] each
        return q, self._heads(k), self._heads(v)

    def of_intervals(
        self,
        queries: Tensor,
        keys: Tensor,
        mask: Tensor,
        seen_by: Tensor,
        tables: tuple[Tensor, Tensor] | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each query sees one interval of the keys.

        Args:
            queries: [N, 1, d_l] (a shard of N under sequence parallelism).
            keys: [M, d_l].
            mask: int32 [2, N], the interval of each query; seen_by: int32 [2, M], the queries of each key.
            tables: rotary tables of queries and keys, [2, N or M, D / 2] (`cross_rope`).
            residual: what is to be added to the queries, of their shape.

        Returns:
            [N, 1, d_l], sharded as the queries are; and queries with their residual and keys, for whoever reads them
            too (see `normed`).
        """
        query_states, queries = normed(self.q_norm, queries, residual)
        key_states, keys = normed(self.kv_norm, keys)
        if tables is not None:
            q, k, v = self._project(query_states, key_states)
            q, k = rotary(q, *tables[0]), rotary(k, *tables[1])
            out = interval_attention(q, k, v, mask[0], mask[1], seen_by=seen_by)  # [N, heads of this rank, D]
        else:
            q = self._heads(self.q_proj(query_states)[0])
            both = self.kv_proj(key_states)[0].view(len(keys), 2, -1, self.head_size)  # [M, 2, heads of this rank, D]
            out = interval_attention_joint(q, both, mask[0], mask[1], seen_by=seen_by)
        return self.o_proj(out.reshape(out.shape[0], 1, -1))[0], queries, keys

    def of_patches(self, queries: Tensor, tokens: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The k queries of each patch see exactly the patch's own tokens.

        Args:
            queries: [P, k, d_l].
            tokens: [N, d_l].
            start, end: int32 [P].

        Returns:
            [P, k, d_l].
        """
        patches, count, d = queries.shape
        # q [P * k, heads, D]; k, v [N, heads, D]
        q, k, v = self._project(self.q_norm(queries.reshape(-1, d)), self.kv_norm(tokens))
        out = patch_attention(q.view(patches, count, *q.shape[1:]), k, v, start, end)
        return self.o_proj(out.reshape(patches * count, -1))[0].view(patches, count, d)
