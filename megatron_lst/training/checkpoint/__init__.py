"""Checkpoints: `folders` on disk, `saving` while training goes on, `verification` before a load.

What reads and lists folders is named here; it imports no torch.
"""

from megatron_lst.training.checkpoint.folders import (
    Checkpoint,
    begin,
    complete_checkpoints,
    find_checkpoint,
    finish,
    newest_checkpoint,
)

__all__ = [
    "Checkpoint",
    "begin",
    "complete_checkpoints",
    "find_checkpoint",
    "finish",
    "newest_checkpoint",
]
