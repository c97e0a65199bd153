"""The patch decoder: from token states and global outputs to the hidden states of the head (SPEC 5).

Shapes: n tokens of the decoder's axis (see `batch`), P = b*U units, d_l local width, d_g global width, k vectors a
unit.
"""

from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor, nn

from megatron_lst.config.schema import Config
from megatron_lst.model.batch import Batch
from megatron_lst.model.cross_attention import CrossAttention, column_linear
from megatron_lst.model.head import VocabularyHead
from megatron_lst.model.layers import add_later, layer_spec, norm_class, normed, rotary_tables
from megatron_lst.model.settings import local_settings
from megatron_lst.parallel.state import ParallelState


class PatchDecoderLayer(MegatronModule):
    """Cross-attention to the visible units first, then the self-attention block."""

    def __init__(
        self, settings: TransformerConfig, whole: TransformerConfig, norm: type, number: int, state: ParallelState,
        double_residual: bool,
    ) -> None:  # fmt: skip
        super().__init__(config=settings)
        self.double_residual = double_residual
        self.cross_attention = CrossAttention(settings, whole, norm, state.tensor_group)
        self.block = build_module(
            layer_spec(norm), config=settings, layer_number=number, pg_collection=state.collection
        )
        add_later([self.block])

    def forward(
        self, hidden: Tensor, residual: Tensor | None, units: Tensor, batch: Batch, tables: Tensor,
        cross_tables: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """hidden [n, 1, d_l], with the residual to be added to it (None: it is), and units Z [P*k, d_l].

        Returns:
            All three for the next layer (see `normed`).
        """
        out, total, units = self.cross_attention.of_intervals(
            hidden, units, batch.cross_mask, batch.cross_seen_by, cross_tables, residual=residual
        )
        out, residual = self.block(
            hidden_states=out,
            attention_mask=batch.decoder_mask,
            attention_bias=tables,
            context=2 * total if self.double_residual else total,
        )
        return out, residual, units


class PatchDecoder(MegatronModule):
    """L_d layers over all tokens and the last norm; `ModelChunk` asks its untied head for losses or logits."""

    def __init__(self, config: Config, state: ParallelState) -> None:
        model = config.model
        settings = local_settings(config, state.layout, model.decoder_layers)
        whole = local_settings(config, state.layout, model.decoder_layers, sequence=False)
        super().__init__(config=settings)
        self.model = model
        norm = norm_class(config.engine.norm)
        d = model.local_hidden
        self.unit_proj = column_linear(model.hidden, model.queries * d, whole, state.tensor_group, gather_output=True)
        self.layers = nn.ModuleList(
            PatchDecoderLayer(settings, whole, norm, i + 1, state, model.double_residual)
            for i in range(model.decoder_layers)
        )
        self.norm = norm(config=settings, hidden_size=d, eps=model.norm_eps)
        self.head = VocabularyHead(d, config, settings, state.tensor_group)

    def forward(self, hidden: Tensor, units: Tensor, batch: Batch) -> Tensor:
        """What the head reads.

        Args:
            hidden: decoder input [n, 1, d_l] (a shard of n under sequence parallelism).
            units: global outputs G [P, 1, d_g], all of them.

        Returns:
            [n, 1, d_l], normed (a shard of n under sequence parallelism).
        """
        model = self.model
        keys = self.unit_proj(units)[0].reshape(-1, model.local_hidden)  # [P * k, d_l]
        head_size = model.local_hidden // model.local_heads
        tables = rotary_tables(batch.decoder_position, head_size, model.rope_theta)
        cross_tables = self._cross_tables(batch, head_size) if model.cross_rope else None
        residual = None
        for layer in self.layers:
            hidden, residual, keys = layer(hidden, residual, keys, batch, tables, cross_tables)
        return normed(self.norm, hidden, residual)[0]

    def _cross_tables(self, batch: Batch, head_size: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of the newest unit that each token may see, and of every unit's k keys."""
        k, theta = self.model.queries, self.model.rope_theta
        newest = batch.unit_position[(batch.cross_mask[1] // k - 1).long()]  # [n_d], from the end of the keys it sees
        keys = batch.unit_position.repeat_interleave(k)  # [P * k]
        return rotary_tables(newest, head_size, theta), rotary_tables(keys, head_size, theta)
