"""What may change when a run goes on, and what may not (contract 4)."""

import dataclasses
import os
from typing import Any

from megatron_lst.config.load import build, read_run, to_plain
from megatron_lst.config.paths import with_paths
from megatron_lst.config.schema import Config, TrainingConfig
from megatron_lst.errors import UserError
from megatron_lst.training.checkpoint import Checkpoint

MAY_DIFFER = (
    "parallel.",
    "engine.",
    "checkpoint.",
    "run.",
    "evaluation.",
    "training.steps",
    "training.decay_steps",
    "training.micro_batch",
    "training.max_bad_steps",
    "training.hang_seconds",
    "training.spike_window",
    "training.spike_threshold",
    "training.max_rollbacks",
    "training.straggler_",
    "data.workers",
    "data.cache",
    "data.stall_seconds",
    "data.validation",
)
"""Keys (or prefixes) that change neither the batches nor what the weights mean. `engine.name` may not differ."""


def resolve(config: Config) -> Config:
    """Replace defaults that depend on other keys by their values, so that a run can be extended without change."""
    tau1, tau2 = config.curriculum_rows
    return dataclasses.replace(
        config,
        patching=dataclasses.replace(config.patching, tau1=tau1, tau2=tau2),
        data=dataclasses.replace(config.data, streams=config.streams, tokens=config.token_cap),
    )


def continue_config(config: Config, stored: dict[str, Any]) -> Config:
    """The configuration with which a stored run goes on.

    Args:
        config: as the user gave it now.
        stored: the run folder's config.yaml, resolved at its first start.

    Returns:
        `config` resolved; what the user left open and the first start settled (tau1, tau2, streams) stays settled.

    Raises:
        UserError: another run's folder; names the key, its old and new value.
    """
    old = build(Config, stored)
    patching, data = config.patching, config.data
    config = resolve(
        dataclasses.replace(
            config,
            patching=dataclasses.replace(
                patching,
                tau1=old.patching.tau1 if patching.tau1 is None else patching.tau1,
                tau2=old.patching.tau2 if patching.tau2 is None else patching.tau2,
            ),
            data=dataclasses.replace(
                data,
                streams=old.data.streams if data.streams is None else data.streams,
                tokens=old.data.tokens if data.tokens is None else data.tokens,
            ),
        )
    )
    moved = {key for key, _, _ in _differences(to_plain(_from_run(old)), to_plain(_from_run(config)), "")}
    whole_old, whole = (to_plain(with_paths(one, os.path.realpath)) for one in (old, config))
    differences = [
        (key, before, now)
        for key, before, now in _differences(whole_old, whole, "")
        if key in moved  # shards that moved with the run folder are the same
        if key == "engine.name" or not key.startswith(MAY_DIFFER)
        if not (key == "training.schedule" and {before, now} == {"constant", "wsd"})  # the same until the decay
    ]
    if differences:
        listed = "\n".join(f"  {key}: {before!r} in the run, {now!r} now" for key, before, now in differences)
        raise UserError(
            f"{config.run.dir} holds a run of another configuration:\n{listed}\n"
            "Give the old values, or another run.dir; to start another run from these weights, export them and set "
            "training.init_from."
        )
    return config


def stored_training(checkpoint: Checkpoint) -> TrainingConfig:
    """What the steps up to a checkpoint were trained with."""
    config: Config = build(Config, read_run(checkpoint.path))
    return config.training


def _from_run(config: Config) -> Config:
    """With paths that count from the run folder."""
    run = os.path.realpath(config.run.dir)
    return with_paths(config, lambda path: os.path.relpath(os.path.realpath(path), run))


def _differences(old: Any, new: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            item
            for key in {**old, **new}
            for item in _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if old == new else [(prefix, old, new)]
