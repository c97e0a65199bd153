"""Which items wait, which are in flight and which are lost: the same rules for every engine."""

import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from lst_prep.items import Outcome, Receipts, Stage
from lst_prep.unread import JobFault
from megatron_lst.errors import UserError
from megatron_lst.files import write_text

_EARLY = 3
"""Workers a place that may die before their first item."""


class Failures:
    """What went wrong with items, a file each, for `lst prep failed`; removed when the item is done."""

    def __init__(self, work: Path, stage: str) -> None:
        self._folder = work / stage / "failed"
        self._known = {int(path.stem) for path in self._folder.glob("*.txt")}

    def add(self, item: int, what: str) -> None:
        path = self._folder / f"{item:07d}.txt"
        before = path.read_text(encoding="utf-8") if item in self._known else ""
        write_text(path, before + what.rstrip() + "\n")
        self._known.add(item)

    def done(self, item: int) -> None:
        if item in self._known:
            (self._folder / f"{item:07d}.txt").unlink(missing_ok=True)
            self._known.discard(item)


def failed_items(work: Path) -> Iterable[tuple[str, int, str]]:
    """(stage, item, what is known of it) of every item that failed and is not done since."""
    for path in sorted(work.glob("*/failed/*.txt")):
        yield path.parent.parent.name, int(path.stem), path.read_text(encoding="utf-8")


class Dealing:
    """Deals the items of a stage to workers.

    Args:
        todo: items, in the order in which they are dealt.
        attempts: how often an item whose worker dies is tried.
        places: workers that there are at a time, for the limit of those that die before they have an item.
    """

    def __init__(self, stage: Stage, receipts: Receipts, todo: Iterable[int], attempts: int, places: int) -> None:
        self.stage, self.receipts = stage, receipts
        self.waiting = deque(todo)
        self.failures = Failures(receipts.work, stage.name)
        self._attempts, self._tries, self._lost = attempts, dict[int, int](), list[int]()
        self._early, self._alone = 0, set[int]()
        self.places = places

    def next(self, held: int | None = None) -> tuple[int | None, int | None]:
        """What a worker does now, and what it will be given after that: it begins to load it. None, None: no more.

        Items whose worker died are tried alone, so that it is known which one it died of; the last items go to whoever
        is free.

        Args:
            held: the second of what it was given last.
        """
        item = held if held is not None else self.waiting.popleft() if self.waiting else None
        ahead = self.stage.ahead and self._attempts > 1 and item is not None and item not in self._alone
        if not ahead or len(self.waiting) < max(self.places, 1) or self.waiting[0] in self._alone:
            return item, None
        return item, self.waiting.popleft()

    def died(self, item: int | None, why: str, held: int | None = None) -> None:
        """A worker died: its item is given back, unless workers died of it too often.

        Args:
            item: that it had; None: it had not begun.
            held: that it had not begun to do.
            why: and where; what a person reads.

        Raises:
            JobFault: workers die again and again before they begin.
        """
        name = self.stage.name
        if item is None:
            self._early += 1
            if self._early > _EARLY * self.places:
                raise JobFault(f"stage {name}: workers die before they start, the last {why}")
            return
        self._alone.add(item)
        if held is not None:
            self._alone.add(held)
            self.waiting.appendleft(held)
        tries = self._tries[item] = self._tries.get(item, 0) + 1
        self.failures.add(item, f"attempt {tries}: the worker died, {why}")
        print(f"prep {name}: the worker of item {item} died (attempt {tries}), {why}", file=sys.stderr)
        if tries < self._attempts:
            self.waiting.append(item)
        else:
            self._lost.append(item)

    def settle(self, item: int | None, outcome: Outcome, where: str) -> Outcome:
        """Look at what a worker says.

        Args:
            item: that it did; None: it has started.
            where: the worker.

        Raises:
            UserError, JobFault, RuntimeError: what it says.
        """
        kind, payload = outcome
        if item is not None and kind == "done":
            self.failures.done(item)
        elif item is not None and kind != "ready":
            shown = payload if isinstance(payload, str) else "\n".join(f"{a}: {b}" for a, b in payload[0].items())
            self.failures.add(item, f"{where}: {shown}")
        if kind == "user":
            raise UserError(payload)
        if kind == "fault":
            raise JobFault(payload)
        if kind == "bug":
            raise RuntimeError(f"stage {self.stage.name}, item {item}, {where}:\n{payload}")
        return outcome

    def end(self) -> None:
        """Raises JobFault when items were lost; everything else is done."""
        if self._lost:
            raise JobFault(
                f"stage {self.stage.name}: the workers of items {sorted(self._lost)} died {self._attempts} times each "
                f"(out of memory?); everything else is done, run again to retry them (`lst prep failed` says more)"
            )
