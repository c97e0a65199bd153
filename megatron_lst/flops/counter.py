"""FLOPs and parameters of each module, from shapes alone (SPEC 2, 3, 5, 8). A product [m, n] x [n, k] is 2 m n k."""

from megatron_lst.config.schema import Config
from megatron_lst.flops.work import Work, expected_work, row_work
from megatron_lst.patching.row import Row

TRAINING_FACTOR = 3.0
"""Forward and backward: the backward of a matrix product is two of the same size."""


def _attention(hidden: int, heads: int, kv_heads: int, head_size: int, tokens: float, pairs: float) -> float:
    """Self-attention: q, k, v, o projections, and scores and values of visible pairs."""
    return 4 * tokens * hidden * (heads + kv_heads) * head_size + 4 * pairs * heads * head_size


def _mlp(hidden: int, ffn: int, tokens: float) -> float:
    return 6 * tokens * hidden * ffn


def module_flops(config: Config, work: Work | None = None) -> dict[str, float]:
    """Forward FLOPs of each module.

    Args:
        work: what is computed, such as `row_work(config, row)`; None: an expected full row of the configuration.

    Returns:
        By module, each over all its layers: `encoder.*`, `global.*`, `decoder.*`, `head` (and `text_head`).
    """
    model, size = config.model, config.vocabulary.padded_size
    work = work or expected_work(config)
    heads = (model.heads, model.global_kv_heads, model.global_head_size)
    trunk = {
        "global.attention": model.layers * _attention(model.hidden, *heads, work.units, work.global_pairs),
        "global.mlp": model.layers * _mlp(model.hidden, model.global_ffn, work.units),
    }
    if model.kind == "baseline":
        return {**trunk, "head": 2 * work.units * model.hidden * size}
    d, k, ffn = model.local_hidden, model.queries, model.local_ffn_size
    local = (model.local_heads, model.local_heads, d // model.local_heads)
    head = {"head": 2 * work.decoder_tokens * d * size}
    if model.text_path == "direct":
        head["text_head"] = 2 * work.text_positions * model.hidden * size
    return {
        "encoder.attention": model.encoder_layers * _attention(d, *local, work.encoder_tokens, work.encoder_pairs),
        "encoder.mlp": model.encoder_layers * _mlp(d, ffn, work.encoder_tokens),
        "encoder.pool_proj": 2 * work.patches * k * d * d,
        "encoder.cross_attention": 4 * k * work.patches * d * d
        + 4 * work.encoder_tokens * d * d
        + 4 * k * work.patch_pairs * d,
        "encoder.output_proj": 2 * work.patches * k * d * model.hidden if k * d != model.hidden else 0.0,
        **trunk,
        "decoder.unit_proj": 2 * work.read_units * model.hidden * k * d,
        "decoder.cross_attention": model.decoder_layers
        * (4 * work.decoder_tokens * d * d + 4 * k * work.read_units * d * d + 4 * k * work.cross_pairs * d),
        "decoder.attention": model.decoder_layers * _attention(d, *local, work.decoder_tokens, work.decoder_pairs),
        "decoder.mlp": model.decoder_layers * _mlp(d, ffn, work.decoder_tokens),
        **head,
    }


def forward_flops(config: Config, work: Work | None = None) -> float:
    """Forward FLOPs of the whole model over `work` (None: an expected full row)."""
    return sum(module_flops(config, work).values())


def row_flops(config: Config, row: Row | None = None) -> float:
    """Training FLOPs, forward and backward, of one row; of an expected full row without one. For MFU."""
    return TRAINING_FACTOR * forward_flops(config, row_work(config, row) if row is not None else None)


def module_parameters(config: Config) -> dict[str, int]:
    """Number of parameters of each module; norms are counted where they stand."""
    model, size = config.model, config.vocabulary.padded_size

    def block(d: int, queries: int, keys: int, ffn: int) -> int:
        return 2 * d * (queries + keys) + 3 * d * ffn + 2 * d

    queries, keys = (heads * model.global_head_size for heads in (model.heads, model.global_kv_heads))
    layer = block(model.hidden, queries, keys, model.global_ffn)
    layer += model.qkv_bias * (queries + 2 * keys) + model.qk_norm * 2 * model.global_head_size
    trunk = model.layers * layer
    if model.kind == "baseline":
        return {"embedding": size * model.hidden, "global": trunk, "head": (size + 1) * model.hidden}
    d, k = model.local_hidden, model.queries
    local, cross = block(d, d, d, model.local_ffn_size), 4 * d * d + 2 * d
    encoder = model.encoder_layers * local + k * d * d + cross
    if k * d != model.hidden:
        encoder += k * d * model.hidden
    decoder = model.decoder_layers * (local + cross) + k * d * model.hidden
    if model.decoder_input == "embedding":
        decoder += size * d
    counts = {
        "embedding": size * d,
        "encoder": encoder,
        "global": trunk,
        "decoder": decoder,
        "head": (size + 1) * d,
    }
    if model.text_path == "direct":
        counts["text_embedding"] = size * model.hidden
        counts["text_head"] = (size + 1) * model.hidden
    return counts


def parameters(config: Config) -> int:
    """Number of trainable parameters."""
    return sum(module_parameters(config).values())
