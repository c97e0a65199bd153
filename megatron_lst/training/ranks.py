"""The few collectives that the trainer itself needs, on CPU tensors, over all ranks. One process needs none."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_lst.errors import LstError, UserError
from megatron_lst.parallel.mailbox import Mailbox

Result = TypeVar("Result")


class Ranks:
    """All ranks of the job, for small control messages.

    Uses a gloo group of its own, so that control messages neither touch a GPU stream nor mix with the engine's.
    """

    def __init__(self) -> None:
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if self.world_size > 1 else 0
        self._group = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self._mailbox = Mailbox(self.rank, self.broadcast_object, self.sum)

    @property
    def store(self) -> dist.Store | None:
        """A connection of its own to the ranks' store, for another thread; None where there is none."""
        if self.world_size == 1:
            return None
        try:
            return dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError, NotImplementedError):  # an earlier torch; a store of files
            return None

    def max(self, value: int) -> int:
        """Largest value that any rank gave."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return int(tensor.item())

    def sum(self, value: int) -> int:
        """Sum of what all ranks gave."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(tensor, group=self._group)
        return int(tensor.item())

    def all(self, value: bool) -> bool:
        """True when it is true on every rank."""
        return not self.max(not value)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self._group)

    def collect(self, value: Any) -> dict[int, Any]:
        """Small objects of the ranks that have one, on rank 0, by rank; nothing elsewhere. For rare use.

        Through the store: a gather would connect rank 0 with every other rank.

        Args:
            value: None: this rank has none.
        """
        if self.world_size == 1:
            return {} if value is None else {0: value}
        return self._mailbox.collect(value)

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's small object on every rank. For rare use."""
        if self.world_size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def on_writer(self, action: Callable[[], Result]) -> Result:
        """Do something on rank 0 and have its small result everywhere; when it fails there, every rank leaves with the
        same error: whichever ends first, it is the cause that people read.

        Raises:
            LstError: what rank 0 raised.
        """
        problem: LstError | None = None
        result: Any = None
        if self.rank == 0:
            try:
                result = action()
            except LstError as error:
                problem = error
            except OSError as error:
                problem = UserError(f"run.dir: cannot write {error.filename or 'the run folder'}: {error.strerror}")
        problem, result = self.broadcast_object((problem, result))
        if problem is not None:
            raise problem
        return result
