"""Before the first step: settle the configuration, join the other ranks, lock the run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_lst.config.load import read_run
from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import NO_SOURCES
from megatron_lst.errors import UserError
from megatron_lst.parallel.layout import ParallelLayout, check_layout
from megatron_lst.parallel.state import ranks_of_run, start_world
from megatron_lst.training.checkpoint import newest_checkpoint
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.resilience import agreement
from megatron_lst.training.resilience.lock import RunLock, newest_generation
from megatron_lst.training.resume import continue_config, resolve


def settle_config(config: Config) -> Config:
    """The resolved configuration of a new run, or of the stored one that goes on.

    Raises:
        UserError: no data, or the run folder holds a run of another configuration.
    """
    if not config.data.sources:
        raise UserError(NO_SOURCES)
    stored = Path(config.run.dir) / "config.yaml"
    return continue_config(config, read_run(stored.parent)) if has_begun(stored.parent) else resolve(config)


def has_begun(folder: Path) -> bool:
    """Whether a folder's configuration binds. One that failed before its first step (data of another tokenizer, memory
    that did not suffice) has made nothing that a corrected configuration could spoil."""
    metrics = folder / "metrics.jsonl"
    steps = metrics.is_file() and metrics.stat().st_size > 0
    return (folder / "config.yaml").is_file() and (steps or newest_checkpoint(folder) is not None)


@contextmanager
def init_distributed(config: Config) -> Iterator[tuple[Ranks, ParallelLayout]]:
    """Refuse an impossible layout, join torch.distributed, and make sure that all ranks run the same thing.

    Leaves torch.distributed at the end, if it was not joined before.

    Raises:
        UserError: the layout cannot work, or the ranks differ in configuration or code.
    """
    layout = check_layout(config, ranks_of_run())
    joined = start_world()
    try:
        if dist.get_world_size() > 1:
            store = dist.distributed_c10d._get_default_store()
            agreement.agree(store, dist.get_rank(), dist.get_world_size(), agreement.describe_rank(config))
        yield Ranks(), layout
    finally:
        if joined and dist.is_initialized():
            dist.destroy_process_group()


def lock_run_folder(config: Config, ranks: Ranks) -> tuple[RunLock | None, int]:
    """Make and lock the run folder. Returns the lock (on rank 0) and its generation (everywhere).

    Raises:
        UserError: another run that is alive holds it.
    """
    held: list[RunLock] = []
    folder = Path(config.run.dir)

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        held.append(RunLock(folder, stale_seconds=config.run.stale_seconds))

    ranks.on_writer(take)
    return (held[0] if held else None), ranks.max(newest_generation(folder / ".lock") if held else 0)
