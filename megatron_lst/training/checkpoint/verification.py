"""A checkpoint is loaded only if it is what was written; all ranks find that out together, and read each byte once."""

from collections.abc import Callable
from itertools import islice

from megatron_lst.config.schema import CheckpointConfig
from megatron_lst.engines.base import Engine
from megatron_lst.errors import DamagedDataError
from megatron_lst.training.checkpoint.folders import Checkpoint, complete_checkpoints
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.resilience.events import EventKind


def load_checkpoint(
    engine: Engine,
    found: Checkpoint,
    settings: CheckpointConfig,
    ranks: Ranks,
    tell: Callable[[EventKind, str], None] = lambda *_: None,
) -> None:
    """Load a checkpoint, or refuse a damaged one; collective. Each rank looks at its share of the files first; the
    engine hashes what it reads. (An earlier version's checkpoint has no hashes for that, and is read twice.)

    No older one is taken instead: whether the steps in between are given up is for people to say.

    Args:
        tell: receives kind and message of each damaged file, on rank 0.

    Raises:
        DamagedDataError: on every rank, naming every file that is missing, of another size or (`checkpoint.verify`) of
            another hash, and how to go on.
        UserError: it is another model's.
    """
    entries = ranks.on_writer(lambda: found.manifest()["files"])
    mine = dict(islice(entries.items(), ranks.rank, None, ranks.world_size))
    parts = ranks.collect(found.damaged(mine, settings.verify == "hashes", loading=True) or None)
    damaged = sorted(line for part in parts.values() for line in part)

    def refuse() -> None:
        if damaged:
            raise DamagedDataError(_sentence(found, damaged))

    for line in damaged:
        tell("damaged", f"{found.path}: {line}")
    ranks.on_writer(refuse)
    try:
        engine.load(found.engine_folder)
    except DamagedDataError as error:
        tell("damaged", f"{found.path}: {error}")
        raise DamagedDataError(_sentence(found, [str(error)])) from error


def _sentence(found: Checkpoint, damaged: list[str]) -> str:
    root = found.path.parent
    older = [c.path.name for c in complete_checkpoints(root.parent) if c.step < found.step]
    way_out = (
        f"to go on from {older[-1]}, move {found.path.name} out of {root}"
        if older
        else f"there is no older one; to start afresh, move {found.path.name} out of {root}"
    )
    listed = "\n  ".join(damaged)
    return f"checkpoint {found.path} is damaged:\n  {listed}\nNothing was removed; {way_out}"
