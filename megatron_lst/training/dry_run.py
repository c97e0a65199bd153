"""`lst train CONFIG --dry-run`: everything before the first step, and no step; the run folder stays as it is."""

from collections.abc import Callable
from pathlib import Path

import torch

from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import check_shard_sizes
from megatron_lst.data.validation import validation_rows
from megatron_lst.engines import build_engine
from megatron_lst.engines.base import Engine
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import pipeline_split
from megatron_lst.planning.memory import stage_memory
from megatron_lst.training.checkpoint import newest_checkpoint
from megatron_lst.training.feed import RowFeed, StepBatch
from megatron_lst.training.init_from import check_export
from megatron_lst.training.provenance import check_sources
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.start import has_begun, init_distributed, settle_config
from megatron_lst.training.text_ability import TextAbility
from megatron_lst.training.trackers import require_trackers


def dry_run(config: Config, build: Callable[..., Engine] = build_engine) -> list[str]:
    """Do what `train` does before its first step: settle the configuration, join the ranks, open and compare the data,
    build the engine with its initial weights, and the rows of the next step. No checkpoint is loaded, nobody is locked
    out, and the language model of `evaluation.text` is not measured.

    Args:
        build: makes the engine; called as `build_engine` is.

    Returns:
        What was found, a line each; the same on every rank.

    Raises:
        UserError, DamagedDataError, LstError: as `train`.
    """
    config = settle_config(config)
    with init_distributed(config) as (ranks, layout):
        lines = ranks.on_writer(lambda: _data(config))
        ability = TextAbility(config, ranks, measure_original=False)
        lines += ability.describe()
        engine = build(config, layout=layout, fresh=False)
        try:
            lines += [f"{key}: {value}" for key, value in engine.describe().items()]
            engine.init_weights()
            return lines + _memory(config, layout, engine) + _next_rows(config, ranks, engine)
        finally:
            engine.close()


def _data(config: Config) -> list[str]:
    """Open everything that training reads; of rank 0."""
    run, steps = Path(config.run.dir), config.training.steps
    require_trackers(config.run.wandb)
    check_shard_sizes(config)
    found = check_sources(config, has_begun(run))
    begun = newest_checkpoint(run)
    if begun is not None:
        lines = [f"start: from {begun.path}, {max(0, steps - begun.step):,} steps are left"]
    elif config.training.init_from:
        lines = [f"start: {steps:,} steps from the weights of {config.training.init_from}"]
        lines += [f"start: {line}" for line in check_export(config, found)]
    else:
        lines = [f"start: {steps:,} steps from weights drawn from training.seed={config.training.seed}"]
    for source in config.data.validation if config.evaluation.every else ():
        rows = validation_rows(config, source, config.evaluation.rows)
        lines.append(f"held out: {source.name}, {len(rows)} rows")
    return lines


def _memory(config: Config, layout: ParallelLayout, engine: Engine) -> list[str]:
    split = pipeline_split(config, layout.pipeline, layout.virtual)
    most = max(stage_memory(config, layout, split), key=lambda memory: memory.total)
    states = most.weights + most.gradients + most.optimizer
    lines = [f"memory: {states / 1e9:.2f} GB of weights, gradients and optimizer on a rank (arithmetic)"]
    if engine.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(engine.device)
        lines.append(
            f"memory: {most.total / 1e9:.1f} GB with activations (an estimate); {(whole - free) / 1e9:.1f} of "
            f"{whole / 1e9:.1f} GB are in use on rank 0 before the first step"
        )
    return lines


def _next_rows(config: Config, ranks: Ranks, engine: Engine) -> list[str]:
    """Rows of a step: of the first one, also where a checkpoint is there."""
    with RowFeed(config, ranks, engine, None, 0, 1) as feed:
        batch: StepBatch = next(feed)
    vocabulary, tokens = config.vocabulary, sum(len(row.tokens) for row in batch.rows)
    speech = sum(int(vocabulary.is_speech(row.tokens).sum()) for row in batch.rows)
    return [
        f"rows: {len(batch.rows)} of {config.data.units:,} units on a rank, {tokens:,} tokens, "
        f"{speech / tokens:.0%} of them speech; {feed.builders} of {ranks.world_size} ranks build rows"
    ]
