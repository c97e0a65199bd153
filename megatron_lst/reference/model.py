"""The oracle: the Latent Speech-Text Transformer and its baseline on one row, as SPEC 1-5 state them.

Dense masks are built from the row's maps: u(t), c(t) and documents.  No cache, no batch, no fusion, no parallelism;
tests compare the Megatron model and the inference model with this one, logit by logit and gradient by gradient, and
the names of its parameters are the canonical names of exported weights.

    tokens [N] -> encoder states H [N, d_l] -> patches E [U, d_g] -> global G [U, d_g] -> decoder [N, d_l] -> [N, V]

Canonical names, `.weight` but for the biases, matrices [out, in] (V: padded vocabulary; d_l, d_g: local, global width):

    embedding [V, d_l]
    encoder.layers.I.BLOCK      input_norm, attention.{q,k,v,o}_proj, post_attention_norm, mlp.{gate,up,down}_proj
    encoder.pool_proj [k d_l, d_l]      encoder.cross_attention.{q_norm,kv_norm,q_proj,k_proj,v_proj,o_proj}
    encoder.output_proj [d_g, k d_l]    only where k d_l is not d_g
    global_transformer.layers.I.BLOCK   with attention.{q,k}_norm [head size] under qk_norm, and
                                        attention.{q,k,v}_proj.bias under qkv_bias
    decoder.embedding [V, d_l]          only with decoder_input: embedding
    decoder.unit_proj [k d_l, d_g]      decoder.layers.I.{cross_attention as above, BLOCK}
    decoder.norm                        decoder.head [V, d_l]
    text_embedding [V, d_g], text_norm, text_head [V, d_g]      only with text_path: direct
    baseline: embedding [V, d_g], global_transformer..., norm, head [V, d_g]
"""

import torch
from torch import Tensor, nn

from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.initialisation import Initialiser
from megatron_lst.patching.row import Row
from megatron_lst.reference.layers import Block, CrossAttention, RMSNorm, linear
from megatron_lst.vocabulary import Vocabulary


class Maps:
    """A row's maps as tensors, and the masks that follow from them.

    Attributes:
        tokens, unit, closed: int64 [N]; `unit` is u(t), `closed` is c(t).
        position: int64 [N], RoPE index of a token; unit_position: int64 [U].
        speech: bool [N], the token is a speech unit.
        speech_mode: bool [N], the next token is predicted in speech mode: after `<s>` or a speech unit (SPEC 2).
        local: bool [N, N], causal, windowed, same document.
        over_units: bool [U, U], causal, same document.
        own_unit: bool [U, N], token belongs to the unit.
        newest_closed: bool [N, U], c(t) - W_u < j <= c(t), same document.
    """

    def __init__(self, row: Row, config: ModelConfig, vocabulary: Vocabulary, device: torch.device) -> None:
        def tensor(name: str) -> Tensor:
            return torch.as_tensor(getattr(row, name), dtype=torch.int64, device=device)

        self.tokens, self.unit, self.closed = tensor("tokens"), tensor("unit"), tensor("closed")
        document, unit_document = tensor("document"), tensor("unit_document")
        t = self.position = torch.arange(len(self.tokens), device=device)
        j = self.unit_position = torch.arange(row.units, device=device)
        self.speech = torch.as_tensor(vocabulary.is_speech(row.tokens), device=device)
        self.speech_mode = self.speech | (self.tokens == vocabulary.speech_marker)
        same_document = document[:, None] == document[None, :]
        self.local = same_document & (t[None, :] <= t[:, None]) & (t[None, :] > t[:, None] - config.window)
        self.over_units = (unit_document[:, None] == unit_document[None, :]) & (j[None, :] <= j[:, None])
        self.own_unit = self.unit[None, :] == j[:, None]
        closed = self.closed[:, None]
        self.newest_closed = (
            (document[:, None] == unit_document[None, :])
            & (j[None, :] <= closed)
            & (j[None, :] > closed - config.decoder_window_units)
        )


class Encoder(nn.Module):
    """Patch encoder (SPEC 2): local block over tokens, pooling and cross-attention inside each unit."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, k = config.local_hidden, config.queries
        block = (d, config.local_heads, config.local_ffn_size, config.rope_theta, config.norm_eps)
        self.layers = nn.ModuleList(Block(*block) for _ in range(config.encoder_layers))
        self.pool_proj = linear(d, k * d)
        self.cross_attention = CrossAttention(d, config.local_heads, config.rope_theta, config.norm_eps)
        self.output_proj = linear(k * d, config.hidden) if k * d != config.hidden else None

    def states(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """Token embeddings [n, d_l] -> H [n, d_l]."""
        for layer in self.layers:
            x = layer(x, mask, position)
        return x

    def patches(self, h: Tensor, own_unit: Tensor) -> Tensor:
        """H [n, d_l], own_unit bool [u, n] (every unit has a token) -> patch embeddings E [u, d_g]."""
        d, k = self.config.local_hidden, self.config.queries
        if self.config.pooling == "max":
            # One unit at a time: max's gradient goes to the first index that attains the maximum (argmax of a bool
            # is the first true), which torch.max leaves open on ties.
            pooled = torch.stack([first_max(h[members]) for members in own_unit])
        else:
            pooled = torch.stack([h[members].mean(0) for members in own_unit])
        queries = self.pool_proj(pooled).view(-1, d)  # [u * k, d_l]
        seen = own_unit.repeat_interleave(k, 0)  # bool [u * k, n]
        residual = 2 if self.config.double_residual else 1
        out = residual * queries + self.cross_attention(queries, h, seen)
        out = out.view(-1, k * d)
        return out if self.output_proj is None else self.output_proj(out)


def first_max(x: Tensor) -> Tensor:
    """Elementwise maximum over axis 0; the gradient goes to the first index that attains it. [n, d] -> [d]."""
    index = (x == x.max(0).values).int().argmax(0)  # [d]
    return x.gather(0, index[None, :])[0]


class DecoderLayer(Block):
    """Cross-attention to closed units first, then the local block (SPEC 5)."""

    def __init__(self, config: ModelConfig) -> None:
        d, heads = config.local_hidden, config.local_heads
        super().__init__(d, heads, config.local_ffn_size, config.rope_theta, config.norm_eps)
        self.cross_attention = CrossAttention(d, heads, config.rope_theta, config.norm_eps)


class Decoder(nn.Module):
    """Patch decoder (SPEC 5): predicts the next token from raw tokens and the newest closed units."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        d = config.local_hidden
        if config.decoder_input == "embedding":
            self.embedding = nn.Embedding(vocabulary_size, d)
        self.unit_proj = linear(config.hidden, config.queries * d)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = RMSNorm(d, config.norm_eps)
        self.head = linear(d, vocabulary_size)

    def forward(self, x: Tensor, g: Tensor, maps: Maps, local: Tensor) -> Tensor:
        """x [N, d_l], G [U, d_g], self-attention mask bool [N, N] -> logits [N, V]."""
        k = self.config.queries
        source = self.unit_proj(g).view(-1, self.config.local_hidden)  # [U * k, d_l]
        seen = maps.newest_closed.repeat_interleave(k, 1)  # bool [N, U * k]
        rope = (maps.closed, maps.unit_position.repeat_interleave(k)) if self.config.cross_rope else None
        residual = 2 if self.config.double_residual else 1
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = residual * x + layer.cross_attention(x, source, seen, rope)
            x = layer(x, local, maps.position)
        return self.head(self.norm(x))


class GlobalTransformer(nn.Module):
    """Causal transformer over the units of each document, without a final norm (SPEC 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Block(
                config.hidden,
                config.heads,
                config.global_ffn,
                config.rope_theta,
                config.norm_eps,
                config.global_kv_heads,
                qk_norm=config.qk_norm,
                head_size=config.head_size,
                qkv_bias=config.qkv_bias,
                scaling=config.rope_scaling,
                rope=config.has_rope(layer),
            )
            for layer in range(config.layers)
        )

    def forward(self, e: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            e = layer(e, mask, position)
        return e


class ReferenceModel(nn.Module):
    """Logits of one row.

    Args:
        config: every option of `ModelConfig`; `kind` chooses LST or baseline.
        vocabulary: its `padded_size` is V.
        seed: of the initial weights, those that an engine with this `training.seed` begins with.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, seed: int = 0) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        size = vocabulary.padded_size
        if config.kind == "baseline":
            self.embedding = nn.Embedding(size, config.hidden)
            self.global_transformer = GlobalTransformer(config)
            self.norm = RMSNorm(config.hidden, config.norm_eps)
            self.head = linear(config.hidden, size)
        else:
            self.embedding = nn.Embedding(size, config.local_hidden)
            self.encoder = Encoder(config)
            self.global_transformer = GlobalTransformer(config)
            self.decoder = Decoder(config, size)
            if config.text_path == "direct":
                self.text_embedding = nn.Embedding(size, config.hidden)
                self.text_norm = RMSNorm(config.hidden, config.norm_eps)
                self.text_head = linear(config.hidden, size)
        initialiser = Initialiser(config, seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(initialiser.whole(name, tuple(parameter.shape)))

    def forward(self, row: Row) -> Tensor:
        """Logits [N, V] of the token after each position, in the model's dtype.

        Raises:
            UserError: a baseline is given patches of more than one token.
        """
        maps = Maps(row, self.config, self.vocabulary, self.embedding.weight.device)
        if self.config.kind == "baseline":
            if row.units != len(row.tokens):
                raise UserError(f"row {row.index}: a baseline takes units of one token (patching.strategy none or bpe)")
            return self.head(
                self.norm(self.global_transformer(self.embedding(maps.tokens), maps.over_units, maps.unit_position))
            )
        return self._direct(maps) if self.config.text_path == "direct" else self._patched(maps)

    def _patched(self, maps: Maps) -> Tensor:
        """Text tokens are patches of length 1, through the same operations."""
        h = self.encoder.states(self.embedding(maps.tokens), maps.local, maps.position)
        g = self.global_transformer(self.encoder.patches(h, maps.own_unit), maps.over_units, maps.unit_position)
        x = self.decoder.embedding(maps.tokens) if self.config.decoder_input == "embedding" else h
        return self.decoder(x, g, maps, maps.local)

    def _direct(self, maps: Maps) -> Tensor:
        """Text skips encoder and decoder (SPEC 2, `text_path: direct`).

        The encoder runs over speech tokens, the decoder over speech-mode positions (`<s>` and speech).  Both keep
        the row's masks and RoPE indices, restricted to their own tokens.  `<s>` has no encoder state: the decoder
        starts there from its raw embedding.  Here every position is computed, those that do not count see only
        themselves and are dropped, so that shapes depend on N and U alone.
        """
        itself = torch.eye(len(maps.tokens), dtype=torch.bool, device=maps.tokens.device)
        embedded = self.embedding(maps.tokens)
        h = self.encoder.states(embedded, maps.local & maps.speech[None, :] | itself, maps.position)
        first_token = maps.own_unit.int().argmax(1)  # [U]: the first true of each row
        is_patch = maps.speech[first_token]
        e = torch.where(
            is_patch[:, None],
            self.encoder.patches(h, maps.own_unit),
            self.text_embedding(maps.tokens[first_token]),
        )
        g = self.global_transformer(e, maps.over_units, maps.unit_position)
        if self.config.decoder_input == "embedding":
            x = self.decoder.embedding(maps.tokens)
        else:
            x = torch.where(maps.speech[:, None], h, embedded)
        spoken = self.decoder(x, g, maps, maps.local & maps.speech_mode[None, :] | itself)
        written = self.text_head(self.text_norm(g[maps.unit]))
        return torch.where(maps.speech_mode[:, None], spoken, written)
