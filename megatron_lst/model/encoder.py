"""The patch encoder: token states, and one vector a unit (SPEC 2).

Shapes: n tokens of the encoder's axis (see `batch`), P = b*U units, d_l local width, d_g global width, k queries a
patch.  Under sequence parallelism token states and patch embeddings are sharded over positions; pooling and
cross-attention run on all.
"""

from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor, nn

from lst_kernels import patch_pool
from megatron_lst.config.schema import Config
from megatron_lst.model.batch import Batch
from megatron_lst.model.cross_attention import CrossAttention, column_linear
from megatron_lst.model.layers import add_later, layer_spec, norm_class, rotary_tables
from megatron_lst.model.settings import keep_uninitialised, local_settings
from megatron_lst.parallel.state import ParallelState


def token_embedding(config: Config, settings: TransformerConfig, state: ParallelState) -> VocabParallelEmbedding:
    """The embedding table of width `settings.hidden_size`, sharded by rows."""
    return VocabParallelEmbedding(
        config.vocabulary.padded_size,
        settings.hidden_size,
        init_method=keep_uninitialised,
        reduce_scatter_embeddings=settings.sequence_parallel,
        config=settings,
        tp_group=state.tensor_group,
    )


def embed(table: VocabParallelEmbedding, tokens: Tensor) -> Tensor:
    """tokens int [n] -> [n, 1, d] (a shard of n under sequence parallelism)."""
    out = table(tokens[None])
    return out if table.reduce_scatter_embeddings else out.transpose(0, 1)


class PatchEncoder(MegatronModule):
    """L_e local layers over all tokens, then pooling and cross-attention into patches.

    Args:
        with_patches: False on the last pipeline stage, where only the token states are needed.
    """

    def __init__(self, config: Config, state: ParallelState, with_patches: bool = True) -> None:
        model = config.model
        settings = local_settings(config, state.layout, model.encoder_layers)
        super().__init__(config=settings)
        self.model, self.sequence, self.group = model, state.layout.sequence, state.tensor_group
        norm = norm_class(config.engine.norm)
        spec = layer_spec(norm)
        self.layers = nn.ModuleList(
            build_module(spec, config=settings, layer_number=i + 1, pg_collection=state.collection)
            for i in range(model.encoder_layers)
        )
        add_later(self.layers[:-1])
        if not with_patches:
            return
        whole = local_settings(config, state.layout, model.encoder_layers, sequence=False)
        d, k = model.local_hidden, model.queries
        self.pool_proj = column_linear(d, k * d, whole, self.group, gather_output=True)
        self.cross_attention = CrossAttention(whole, whole, norm, self.group)
        if k * d != model.hidden:
            self.output_proj = column_linear(k * d, model.hidden, whole, self.group, gather_output=True)

    def states(self, embedded: Tensor, batch: Batch) -> Tensor:
        """Token states H. embedded: [n, 1, d_l] -> the same shape."""
        head_size = self.model.local_hidden // self.model.local_heads
        tables = rotary_tables(batch.encoder_position, head_size, self.model.rope_theta)
        hidden, residual = embedded, None
        for layer in self.layers:
            hidden, residual = layer(
                hidden_states=hidden, attention_mask=batch.encoder_mask, attention_bias=tables, context=residual
            )
        return hidden

    def patches(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Patch embeddings. hidden: H [n, 1, d_l] -> [patches, 1, d_g], the same on every tensor-parallel rank."""
        model = self.model
        if self.sequence:
            # What follows is the same on every rank, and so is its gradient: the backward takes this rank's part.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=self.group)
        tokens = hidden.squeeze(1)  # [n, d_l]
        pooled = patch_pool(tokens, batch.patch_start, batch.patch_end, model.pooling)  # [patches, d_l]
        queries = self.pool_proj(pooled)[0].view(-1, model.queries, model.local_hidden)  # [patches, k, d_l]
        out = self.cross_attention.of_patches(queries, tokens, batch.patch_start, batch.patch_end)  # [patches, k, d_l]
        out = out + (2 * queries if model.double_residual else queries)
        units = out.reshape(out.shape[0], 1, -1)  # [patches, 1, k * d_l]
        if model.queries * model.local_hidden != model.hidden:
            units = self.output_proj(units)[0]
        return units
