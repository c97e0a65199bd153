"""Contradictions between keys; what one key takes by itself is written beside it in `schema`. World size and devices
are checked by `parallel.layout`."""

import os

from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError


def check(config: Config) -> None:
    """Refuse a configuration that cannot run on any number of ranks.

    Raises:
        UserError: names both keys and what would be right.
    """
    model, patching, data, parallel, training = (
        config.model,
        config.patching,
        config.data,
        config.parallel,
        config.training,
    )

    def refuse(message: str) -> None:
        raise UserError(message)

    for width, count in (("hidden", "heads"), ("local_hidden", "local_heads")):
        hidden, heads = getattr(model, width), getattr(model, count)
        if width == "hidden" and model.head_size is not None:
            if model.head_size % 2:
                refuse(f"model.head_size={model.head_size} must be even: RoPE turns pairs")
        elif hidden % heads or (hidden // heads) % 2:
            refuse(
                f"model.{width}={hidden} must split into model.{count}={heads} heads of one even size "
                "(RoPE turns pairs)"
            )
    if model.heads % model.global_kv_heads:
        refuse(f"model.kv_heads={model.global_kv_heads} must divide model.heads={model.heads}")
    scaling = model.rope_scaling
    if scaling.low_frequency >= scaling.high_frequency:
        refuse(
            f"model.rope_scaling.low_frequency={scaling.low_frequency:g} must be below "
            f"model.rope_scaling.high_frequency={scaling.high_frequency:g}"
        )
    if model.no_rope_every == 1:
        refuse("model.no_rope_every=1 leaves no layer with positions; 0: every layer has them")
    if model.kind == "baseline" and patching.strategy not in ("none", "bpe"):
        refuse(f"patching.strategy={patching.strategy}: model.kind=baseline has no patches; use none or bpe")
    if model.kind == "lst" and patching.strategy == "bpe":
        refuse(
            "patching.strategy=bpe is the baseline's; model.kind=lst takes none, static, aligned, mixed or curriculum"
        )
    tau1, tau2 = config.curriculum_rows
    if tau1 > tau2:
        refuse(f"patching.tau1={tau1} must not be after patching.tau2={tau2}")
    if config.token_cap < data.units:
        refuse(f"data.tokens={config.token_cap} cannot be below data.units={data.units}: a unit has a token at least")
    if config.streams % training.global_batch and training.global_batch % config.streams:
        refuse(
            f"data.streams={config.streams} and training.global_batch={training.global_batch}: "
            "one must divide the other"
        )
    if parallel.sequence and parallel.tensor == 1:
        refuse("parallel.sequence=true needs parallel.tensor of at least 2: it shards within that group")
    if data.units * training.micro_batch % parallel.tensor:
        refuse(f"data.units={data.units} is not divisible by parallel.tensor={parallel.tensor}")
    if config.vocabulary.padded_size % parallel.tensor:
        refuse(
            f"parallel.tensor={parallel.tensor} does not divide the {config.vocabulary.padded_size} rows of the "
            f"embedding; raise vocabulary.multiple to a multiple of {parallel.tensor}"
        )
    if parallel.virtual > 1 and parallel.pipeline == 1:
        refuse("parallel.virtual needs parallel.pipeline of at least 2")
    if config.engine.name == "deepspeed" and parallel.pipeline > 1:
        refuse("parallel.pipeline under engine.name=deepspeed is not supported; use engine.name=megatron, or ZeRO")
    if config.engine.fp8 != "none" and (config.engine.name != "megatron" or training.precision != "bf16"):
        refuse(
            f"engine.fp8={config.engine.fp8} needs engine.name=megatron and training.precision=bf16, "
            f"got {config.engine.name} and {training.precision}"
        )
    if training.global_batch % training.micro_batch:
        refuse(
            f"training.global_batch={training.global_batch} is not divisible by "
            f"training.micro_batch={training.micro_batch}"
        )
    if training.schedule == "wsd" and training.warmup_steps + (training.decay_steps or 1) > training.steps:
        refuse(
            f"training.warmup_steps={training.warmup_steps} and training.decay_steps={training.decay_steps or 'null'} "
            f"do not fit into training.steps={training.steps}"
        )
    if training.decay_steps is not None and training.schedule != "wsd":
        refuse(f"training.decay_steps={training.decay_steps} is for training.schedule=wsd, not {training.schedule}")
    measured = config.evaluation.every
    if config.checkpoint.keep_best and not (data.validation and measured and config.checkpoint.every % measured == 0):
        refuse(
            f"checkpoint.keep_best=true needs data.validation, and checkpoint.every={config.checkpoint.every} to be a "
            f"multiple of evaluation.every={measured}: checkpoints that were not measured cannot be compared"
        )
    if training.freeze_global_steps and training.init_from is None:
        refuse(
            f"training.freeze_global_steps={training.freeze_global_steps} without training.init_from would hold random "
            "weights still; name the export that `lst warm-start` wrote"
        )
    if training.trunk_lr_ratio != 1 and training.init_from is None:
        refuse(
            f"training.trunk_lr_ratio={training.trunk_lr_ratio:g} without training.init_from would slow random "
            "weights; name the export that `lst warm-start` wrote"
        )
    _check_data(config)
    _check_codebooks(config)


def _check_codebooks(config: Config) -> None:
    """The part of `check` that concerns speech tokens of several codebooks: no patch may end inside a frame."""
    patching, depth = config.patching, config.vocabulary.depth
    if depth == 1:
        return
    if patching.strategy == "bpe":
        raise UserError(f"patching.strategy=bpe is of one codebook, vocabulary.codebooks names {depth}")
    if patching.strategy == "none":
        return
    for name in ("size",) if patching.strategy == "static" else ("size", "max_length"):
        if (value := getattr(patching, name)) % depth:
            raise UserError(
                f"patching.{name}={value}: a frame is {depth} tokens (vocabulary.codebooks), so it must be a "
                f"multiple of {depth}, such as {depth * max(1, round(value / depth))}"
            )


def _check_data(config: Config) -> None:
    """The part of `check` that concerns the training stream."""
    data, spans = config.data, config.data.spans

    def refuse(message: str) -> None:
        raise UserError(message)

    for low, high in (("speech_min", "speech_max"), ("text_min", "text_max")):
        if getattr(spans, low) > getattr(spans, high):
            refuse(
                f"data.spans.{low}={getattr(spans, low)} and data.spans.{high}={getattr(spans, high)}: "
                f"they must be in order"
            )
    shares = {name: getattr(data.segments, name) for name in ("text_speech", "speech_text", "text", "speech")}
    if abs(sum(shares.values()) - 1) > 1e-6:
        named = ", ".join(f"data.segments.{name}={share:g}" for name, share in shares.items())
        refuse(f"{named}: they must sum to 1, and sum to {sum(shares.values()):g}")
    for key, sources in (("sources", data.sources), ("validation", data.validation)):
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            refuse(f"data.{key}: names must differ, found {', '.join(names)}")
        for source in sources:
            if not source.shards:
                refuse(f"data.{key}: {source.name!r} names no shard sets")
    trained = {_same(path) for source in data.sources for path in source.shards}
    for source in data.validation:
        for path in source.shards:
            if _same(path) in trained:
                refuse(f"data.validation: {path} of {source.name!r} is trained on too; hold other shards out")


def _same(path: str) -> str:
    """One text for all ways to write a place."""
    return path.rstrip("/") if "://" in path else os.path.abspath(path)
