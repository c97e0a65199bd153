"""One pipeline chunk of an LST or of its baseline: what the schedule calls.

The first chunk holds embedding and patch encoder, the last the patch decoder and the head; global layers are spread
over all of them.  Where the decoder starts from the encoder's token states, the last chunk holds a replica of
embedding and encoder (SPEC 8), so that only [b*U, 1, d_g] crosses a stage boundary.
"""

from dataclasses import dataclass

from megatron.core.enums import ModelType
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from torch import Tensor

from lst_kernels import patch_unpool
from megatron_lst.config.schema import Config
from megatron_lst.model import fp8
from megatron_lst.model.batch import Batch
from megatron_lst.model.decoder import PatchDecoder
from megatron_lst.model.encoder import PatchEncoder, embed, token_embedding
from megatron_lst.model.head import VocabularyHead
from megatron_lst.model.layers import (
    DocumentCoreAttention,
    add_later,
    global_attention,
    layer_spec,
    norm_class,
    rotary_tables,
)
from megatron_lst.model.settings import global_settings, local_settings
from megatron_lst.parallel.split import PipelineSplit
from megatron_lst.parallel.state import ParallelState

REPLICATED = ("embedding.", "encoder.layers.")
"""Names of the parameters that the last pipeline stage holds a second time."""


@dataclass(frozen=True)
class Predictions:
    """What one head predicts: the source of losses and of logits.

    Attributes:
        hidden: [n, 1, d] (a shard of n under sequence parallelism).
        labels: int [n].
        slot: int [n], where each stands among the N tokens of the batch, N where it is thrown away; None: in order.
    """

    head: VocabularyHead
    hidden: Tensor
    labels: Tensor
    slot: Tensor | None = None


class ModelChunk(MegatronModule):
    """Base of both kinds: the global layers of one chunk, and what Megatron-core's schedule asks of a model.

    Args:
        chunk: number of this chunk in the order of the layers; it lives on stage `chunk % pipeline`.
    """

    def __init__(self, config: Config, state: ParallelState, split: PipelineSplit, chunk: int) -> None:
        layout = state.layout
        settings = global_settings(config, layout, split)
        super().__init__(config=settings)
        self.lst_config, self.state = config, state
        self.pre_process, self.post_process = chunk == 0, chunk == len(split.layers) - 1
        self.vp_stage = chunk // layout.pipeline if layout.virtual > 1 else None
        self.model_type = ModelType.encoder_or_decoder
        self.share_embeddings_and_output_weights = False
        self.first_layer = split.first_layer(chunk)
        self.replicates = layout.pipeline > 1 and config.model.kind == "lst" and config.model.decoder_input == "encoder"

    def add_global_layers(self, layers: int) -> None:
        """Subclasses call it when all that runs before is there, and nothing that runs after: buckets of gradients and
        weights follow the order in which modules are added, and overlap with computation in that order only."""
        engine, settings = self.lst_config.engine, self.config
        norm = norm_class(engine.norm)
        attention = global_attention(engine.attention, settings.params_dtype, self.lst_config.model.global_head_size)
        linear = {"linear": fp8.linear_layers()} if settings.fp8 else {}
        spec = layer_spec(norm, self.lst_config.model.qk_norm, attention, **linear)
        self.documents = issubclass(attention, DocumentCoreAttention)
        self.global_transformer = TransformerBlock(
            settings,
            TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=norm),
            post_layer_norm=False,
            pre_process=self.pre_process,
            post_process=self.post_process,
            pg_collection=self.state.collection,
            vp_stage=self.vp_stage,
        )
        add_later(self.global_transformer.layers[:-1])
        if settings.fp8:
            fp8.score_in_bf16(self.global_transformer)

    def set_input_tensor(self, tensor: Tensor | list[Tensor] | None) -> None:
        """What the previous stage sent; the schedule calls this."""
        self.global_transformer.set_input_tensor(tensor[0] if isinstance(tensor, list) else tensor)

    def mark_replicas(self) -> None:
        """Mark the parameters that two stages hold: one gradient bucket each, counted once in the norm."""
        if not self.replicates:
            return
        for name, parameter in self.named_parameters():
            if name.startswith(REPLICATED) and (self.pre_process or self.post_process):
                parameter.shared_embedding = True  # type: ignore[attr-defined]
                parameter.shared = self.post_process  # type: ignore[attr-defined]
        for module in self.encoder.modules() if hasattr(self, "encoder") else ():
            if isinstance(module, Attention):  # it adds the projection of its output first, which runs last
                module._modules["linear_proj"] = module._modules.pop("linear_proj")

    def run_global(self, units: Tensor | None, batch: Batch) -> Tensor:
        """The global layers of this chunk. units [b*U, 1, d_g], None where the previous stage sent it."""
        model = self.lst_config.model
        tables = rotary_tables(batch.unit_position, model.global_head_size, model.rope_theta, model.rope_scaling)
        documents = None
        if self.documents:
            bounds, longest = batch.document_bounds, batch.longest_document
            documents = PackedSeqParams("sbhd", bounds, bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
        return self.global_transformer(
            units, attention_mask=batch.unit_mask, attention_bias=tables, packed_seq_params=documents
        )

    def forward(self, batch: Batch) -> Tensor:
        """-> [b*U, 1, d_g] for the next stage; on the last chunk the loss of each token, float32 [N]."""
        out = self.predictions(batch)
        if isinstance(out, Tensor):
            return out
        return _on_tokens([p.head(p.hidden, p.labels, summed=p.slot is None) for p in out], out, len(batch.labels))

    def logits(self, batch: Batch) -> Tensor:
        """Logits of the token after each one, [N, V]; for comparisons, a training step never holds them all.

        Only a model of one stage has them, under any tensor parallelism.
        """
        out = self.predictions(batch)
        assert not isinstance(out, Tensor), "the heads are on the last pipeline stage"
        group = self.state.tensor_group
        shards = (p.head.logits(p.hidden).squeeze(1) for p in out)  # [n, V / ranks] each
        logits = [gather_from_tensor_model_parallel_region(shard, group=group) for shard in shards]
        return _on_tokens(logits, out, len(batch.labels))

    def predictions(self, batch: Batch) -> Tensor | list[Predictions]:
        """-> [b*U, 1, d_g] for the next stage; on the last chunk what its heads predict."""
        raise NotImplementedError


def _on_tokens(values: list[Tensor], predictions: list[Predictions], tokens: int) -> Tensor:
    """Each head's losses or logits [n, ...] brought to the batch's axis, [tokens, ...]."""
    if predictions[0].slot is None:
        return values[0]
    out = values[0].new_zeros(tokens + 1, *values[0].shape[1:])  # slot `tokens` takes what padding predicts
    for value, of_head in zip(values, predictions, strict=True):
        assert of_head.slot is not None, "several heads share the axis"
        out = out.index_add(0, of_head.slot, value)
    return out[:-1]


def _where_given(rows: Tensor, index: Tensor, otherwise: Tensor) -> Tensor:
    """rows[index] where index is not -1, `otherwise` elsewhere.

    `rows[index.clamp(min=0)]` would do, but its gradient adds what every -1 sends to row 0 one after the other.

    Args:
        rows: [P, 1, d].
        index: int32 [n].
        otherwise: [n, 1, d].

    Returns:
        [n, 1, d].
    """
    base = otherwise.squeeze(1).masked_fill((index >= 0)[:, None], 0.0)
    return patch_unpool(rows.squeeze(1), index, base)[:, None]


class LstChunk(ModelChunk):
    """The Latent Speech-Text Transformer (SPEC 2-5)."""

    def __init__(self, config: Config, state: ParallelState, split: PipelineSplit, chunk: int) -> None:
        super().__init__(config, state, split, chunk)
        layout, model = state.layout, config.model
        local = local_settings(config, layout, 1)
        whole = global_settings(config, layout, split, sequence=False)
        self.from_encoder, self.direct = model.decoder_input == "encoder", model.text_path == "direct"
        self.sequence, self.group = layout.sequence, state.tensor_group
        if self.pre_process or (self.post_process and self.from_encoder):
            self.embedding = token_embedding(config, local, state)
            self.encoder = PatchEncoder(config, state, with_patches=self.pre_process)
        if self.pre_process and self.direct:
            self.text_embedding = token_embedding(config, whole, state)
        self.add_global_layers(split.layers[chunk])
        if self.post_process:
            self.decoder = PatchDecoder(config, state)
            if not self.from_encoder:
                self.decoder.embedding = token_embedding(config, local, state)
            if self.direct:
                norm = norm_class(config.engine.norm)
                self.text_norm = norm(config=whole, hidden_size=model.hidden, eps=model.norm_eps)
                self.text_head = VocabularyHead(model.hidden, config, whole, self.group)
        self.mark_replicas()

    def predictions(self, batch: Batch) -> Tensor | list[Predictions]:
        hidden = units = None
        if hasattr(self, "encoder"):
            hidden = self.encoder.states(embed(self.embedding, batch.encoder_tokens), batch)
        if self.pre_process:
            assert hidden is not None, "the first chunk has the encoder"
            units = self._unit_embeddings(hidden, batch)
        units = self.run_global(units, batch)
        if not self.post_process:
            return units
        if self.sequence:
            # All that reads the units gives the same gradient on every rank: the backward takes this rank's part.
            units = gather_from_sequence_parallel_region(units, tensor_parallel_output_grad=False, group=self.group)
        spoken = self.decoder(self._decoder_input(hidden, batch), units, batch)
        maps = batch.direct
        if maps is None:
            return [Predictions(self.decoder.head, spoken, batch.labels)]
        written = self.text_norm(units[maps.text_unit])  # [n_t, 1, d_g]
        return [
            Predictions(self.decoder.head, spoken, maps.decoder_labels, maps.decoder_slot),
            Predictions(self.text_head, written, maps.text_labels, maps.text_slot),
        ]

    def _unit_embeddings(self, hidden: Tensor, batch: Batch) -> Tensor:
        """E [P, 1, d_g] (a shard of P under sequence parallelism) from token states."""
        units = self.encoder.patches(hidden, batch)
        if batch.direct is not None:
            units = _where_given(units, batch.direct.unit_patch, embed(self.text_embedding, batch.direct.unit_token))
        if not self.sequence:
            return units
        # A copy: the shard is a view, which the first layer would keep for its backward pass, and with it all units.
        return scatter_to_sequence_parallel_region(units, group=self.group).clone()

    def _decoder_input(self, hidden: Tensor | None, batch: Batch) -> Tensor:
        """[n_d, 1, d_l] (a shard of n_d): token states, or embeddings of the decoder's own."""
        if not self.from_encoder:
            return embed(self.decoder.embedding, batch.decoder_tokens)
        assert hidden is not None, "the last chunk has the encoder's token states"
        if batch.direct is None:
            return hidden
        source = batch.direct.decoder_source
        if self.sequence:
            # Each rank reads the states of its own part: their gradients differ and are added up.
            hidden = gather_from_sequence_parallel_region(hidden, group=self.group)
            source = source.chunk(self.state.layout.tensor)[self.state.tensor_rank]  # of this rank's positions
        embedded = embed(self.embedding, batch.decoder_tokens)  # what `<s>` begins with
        return _where_given(hidden, source, embedded)


class BaselineChunk(ModelChunk):
    """The same trunk without patches: every token is a unit; final norm, untied head (SPEC 8)."""

    def __init__(self, config: Config, state: ParallelState, split: PipelineSplit, chunk: int) -> None:
        super().__init__(config, state, split, chunk)
        model = config.model
        if self.pre_process:
            self.embedding = token_embedding(config, self.config, state)
        self.add_global_layers(split.layers[chunk])
        if self.post_process:
            norm = norm_class(config.engine.norm)
            self.norm = norm(config=self.config, hidden_size=model.hidden, eps=model.norm_eps)
            self.head = VocabularyHead(model.hidden, config, self.config, state.tensor_group)

    def predictions(self, batch: Batch) -> Tensor | list[Predictions]:
        count = batch.rows * batch.units
        units = embed(self.embedding, batch.encoder_tokens[:count]) if self.pre_process else None
        units = self.run_global(units, batch)
        if not self.post_process:
            return units
        return [Predictions(self.head, self.norm(units), batch.labels[:count])]


def build_chunk(config: Config, state: ParallelState, split: PipelineSplit, chunk: int) -> ModelChunk:
    """Chunk number `chunk` of the configured model, weights not set yet."""
    kind = LstChunk if config.model.kind == "lst" else BaselineChunk
    return kind(config, state, split, chunk)
