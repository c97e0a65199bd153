"""Progress of a stage: with hours and the real-time factor where audio is counted, and the nodes where there are."""

from collections import Counter
from typing import IO

from megatron_lst.progress import Progress

_NAMED_NODES = 4


class StageProgress(Progress):
    """Progress of one stage.

    Args:
        name: of the stage.
        total: items in all.
        done: items that an earlier run did.
        stream: as of `Progress`.
    """

    def __init__(self, name: str, total: int, done: int = 0, stream: IO[str] | None = None) -> None:
        super().__init__(f"prep {name}", total, done, stream)
        self._audio_seconds, self._note = 0.0, ""
        self._nodes: Counter[str] = Counter()
        self._model, self._all = 0.0, 0.0

    def advance(
        self,
        items: int = 1,
        audio_seconds: float = 0.0,
        note: str = "",
        node: str = "",
        busy: tuple[float, float] | None = None,
    ) -> None:
        """Count finished items.

        Args:
            node: that did them; empty: this machine.
            busy: seconds that their model computed, and that they took.
        """
        self._audio_seconds += audio_seconds
        self._note = note or self._note
        if node:
            self._nodes[node] += items
        rate = ""
        if self._audio_seconds:
            speed = self._audio_seconds / max(self.elapsed, 1e-6)
            rate = f"{self._audio_seconds / 3600:,.2f} h, {speed:,.0f}x real time"
        if busy is not None:
            self._model, self._all = self._model + busy[0], self._all + busy[1]
        model = f"model busy {self._model / self._all:.0%}" if self._all else ""
        self.update(
            self.done + items, ", ".join(part for part in (rate, model, nodes_text(self._nodes), self._note) if part)
        )


def nodes_text(items: Counter[str]) -> str:
    """Items done by each node; of many, how many nodes there are, and the slowest and the fastest of them."""
    if len(items) <= _NAMED_NODES:
        return " ".join(f"{node}:{count:,}" for node, count in sorted(items.items()))
    (fast, most), (slow, least) = items.most_common(1)[0], items.most_common()[-1]
    return f"{len(items)} nodes, {least:,} ({slow}) to {most:,} ({fast}) items each"
