"""Before a checkpoint is loaded: that it is what was written, found out by all ranks together."""

from collections.abc import Callable

from megatron_lst.config.schema import CheckpointConfig
from megatron_lst.errors import DamagedDataError
from megatron_lst.training.checkpoint.folders import Checkpoint, complete_checkpoints
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.resilience.events import EventKind


def verify_checkpoint(
    found: Checkpoint,
    settings: CheckpointConfig,
    ranks: Ranks,
    tell: Callable[[EventKind, str], None] = lambda *_: None,
) -> None:
    """Refuse a damaged checkpoint; collective. Each rank reads its share of the files.

    No older one is taken instead: whether the steps in between are given up is for people to say.

    Args:
        tell: receives kind and message of each damaged file, on rank 0.

    Raises:
        DamagedDataError: on every rank, naming every file that is missing, of another size or (`checkpoint.verify`) of
            another hash, and how to go on.
    """
    mine = found.damaged_files(settings.verify == "hashes", ranks.rank, ranks.world_size)
    parts = ranks.gather_objects(mine) or []
    damaged = sorted(line for part in parts for line in part)

    def refuse() -> None:
        if not damaged:
            return
        for line in damaged:
            tell("damaged", f"{found.path}: {line}")
        root = found.path.parent
        older = [c.path.name for c in complete_checkpoints(root.parent) if c.step < found.step]
        way_out = (
            f"to go on from {older[-1]}, move {found.path.name} out of {root}"
            if older
            else f"there is no older one; to start afresh, move {found.path.name} out of {root}"
        )
        raise DamagedDataError(
            f"checkpoint {found.path} is damaged:\n  "
            + "\n  ".join(damaged)
            + f"\nNothing was loaded or removed; {way_out}"
        )

    ranks.on_writer(refuse)
