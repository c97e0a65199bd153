"""A rank's rows, step by step, ready for its engine: built once a machine, balanced, packed while a step computes."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from megatron_lst.config.schema import Config
from megatron_lst.data import Loader, open_loader
from megatron_lst.data.stream import Cursor
from megatron_lst.engines.base import Engine
from megatron_lst.engines.microbatches import PackedStep
from megatron_lst.patching.row import Row
from megatron_lst.training.balancing import RowBalancer
from megatron_lst.training.builders import find_builders, neighbours
from megatron_lst.training.ranks import Ranks

LEAVE_SECONDS = 10.0
"""How long a rank that ends waits for the step that it has asked for, so that the others get theirs."""


@dataclass(frozen=True)
class StepBatch:
    """What one rank needs for one step.

    Attributes:
        rows: those that this rank trains on, by increasing index; the same on every rank of its data-parallel share.
        packed: the same rows as its engine takes them.
        cursors: of the streams that this rank built rows of (`StepRows.cursors`); empty where another one builds.
        waited: seconds that the builder waited for its workers.
    """

    rows: list[Row]
    packed: PackedStep
    cursors: Mapping[str, Cursor]
    waited: float


class RowFeed:
    """An iterator over the steps `start` to `stop` - 1; a context manager. Collective over all ranks of the run.

    A thread makes a step while the one before it computes: exactly one ahead, on every rank alike, for the exchange
    between shares is collective. The end of another rank comes out of `next` as PeerLost, all errors as they are.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        engine: Engine,
        state: Mapping[str, Any] | None,
        start: int,
        stop: int,
        machine: str | None = None,
        open_rows: Callable[..., Loader] | None = None,
    ) -> None:
        """
        Args:
            state: cursors of all streams after step `start` - 1; None at the start of a run.
            machine: see `find_builders`.
            open_rows: makes the loader; None: `open_loader`, as which it is called.

        Raises:
            UserError: see `open_loader`.
        """
        self._engine, self._left = engine, stop - start
        self._builders = find_builders(ranks, engine.data_rank, engine.data_size, machine)
        self.builders = self._builders.count
        self._loader: Loader | None = None
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[StepBatch | BaseException] = queue.SimpleQueue()
        self._outstanding = False
        try:
            if self._builders.takes_from is None:
                place = neighbours(engine.data_rank, engine.data_size).index(engine.data_rank)
                self._balance = RowBalancer(place, self._builders.balanced_over)
                self._loader = (open_rows or open_loader)(config, engine.data_rank, engine.data_size, state, start)
        except BaseException as error:
            self._tell(error)
            self.close()
            raise
        threading.Thread(target=self._work, daemon=True, name="rows").start()
        self._ask()

    def _ask(self) -> None:
        if self._left > 0:
            self._left -= 1
            self._outstanding = True
            self._asked.put(True)

    def _work(self) -> None:
        while self._asked.get():
            try:
                self._made.put(self._make())
            except BaseException as error:
                self._tell(error)
                self._made.put(error)
                return

    def _make(self) -> StepBatch:
        source, waited = self._builders.takes_from, 0.0
        cursors: Mapping[str, Cursor] = {}
        if source is not None:
            rows, about = source.receive()
            waited = about["waited"]
        else:
            assert self._loader is not None, "who builds has a loader"
            began = time.perf_counter()
            built = next(self._loader)
            waited, cursors = time.perf_counter() - began, built.cursors
            rows = self._balance(built.rows)
            if self._builders.gives_to is not None:
                rows = self._builders.gives_to.send(rows, waited=waited)
        return StepBatch(rows, self._engine.pack(rows), cursors, waited)

    def _tell(self, error: BaseException) -> None:
        """Those that take this rank's rows end with its error."""
        if self._builders.gives_to is not None:
            self._builders.gives_to.fail(error)

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if not self._outstanding:
            raise StopIteration
        made = self._made.get()
        self._outstanding = False
        if isinstance(made, BaseException):
            raise made
        self._ask()
        return made

    def close(self) -> None:
        """Let go. What was asked for ahead is waited for a moment and thrown away: others may wait for their part."""
        self._asked.put(False)
        if self._outstanding:
            with contextlib.suppress(queue.Empty):
                self._made.get(timeout=LEAVE_SECONDS)
            self._outstanding = False
        if self._loader is not None:
            self._loader.close()
        self._builders.close()

    def __enter__(self) -> "RowFeed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
