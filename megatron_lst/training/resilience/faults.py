"""What to do about a step that is not finite and a loss that jumps. Decisions only: no I/O."""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from megatron_lst.errors import TrainingFault


class BadSteps:
    """Counts steps whose loss or gradient was not finite; the engine has skipped them already.

    Attributes:
        limit: so many in a row end the run.
        in_a_row, total: what was seen; both go into checkpoints, so that a restart does not forget a bad stretch.
    """

    def __init__(self, limit: int):
        self.limit, self.in_a_row, self.total = limit, 0, 0

    def observe(self, skipped: bool) -> bool:
        """Count one step; True when the run must stop. The same on every rank, because `skipped` is."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.total += skipped
        return self.in_a_row >= self.limit

    def fault(self, step: int, where: str) -> TrainingFault:
        """The error that ends the run.

        Args:
            where: the file or folder with the batches.
        """
        return TrainingFault(
            f"step {step}: loss or gradient was not finite {self.in_a_row} times in a row "
            f"(training.max_bad_steps={self.limit}); the weights are those from before. "
            f"The batch is in {where}; `lst data inspect CONFIG --saved FILE` shows it"
        )

    def state(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def restore(self, state: dict[str, int]) -> None:
        self.in_a_row, self.total = int(state["in_a_row"]), int(state["total"])


@dataclass(frozen=True)
class Spike:
    """A loss far above what came before.

    Attributes:
        step, loss: where.
        median: of the window before it.
        score: distance from the median in robust standard deviations.
        roll_back: whether to go back to a checkpoint from before it.
    """

    step: int
    loss: float
    median: float
    score: float
    roll_back: bool

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} is {self.score:.1f} deviations above the median {self.median:.4f} before it"


class SpikeDetector:
    """Compares each loss with the median of a window, in median absolute deviations: outliers do not move either.

    A spike does not enter the window, unless it lasts for half of it: then the level has changed, not the step.
    """

    def __init__(self, window: int, threshold: float, max_rollbacks: int = 0):
        """
        Args:
            window: losses to compare with; nothing is reported before a quarter of it is there.
            threshold: robust standard deviations; 0 reports nothing.
            max_rollbacks: so often `roll_back` is advised in a run.
        """
        self.threshold, self.max_rollbacks, self.rollbacks = threshold, max_rollbacks, 0
        self._losses: deque[float] = deque(maxlen=window)
        self._outside = 0

    def observe(self, step: int, loss: float) -> Spike | None:
        """Take in one loss; losses that are not finite are `BadSteps`' business and ignored."""
        if not self.threshold or not math.isfinite(loss):
            return None
        size = self._losses.maxlen or 1
        if len(self._losses) < max(8, size // 4):
            self._losses.append(loss)
            return None
        median = statistics.median(self._losses)
        deviation = 1.4826 * statistics.median(abs(x - median) for x in self._losses)
        score = (loss - median) / max(deviation, 1e-3 * abs(median), 1e-8)
        if score <= self.threshold:
            self._losses.append(loss)
            self._outside = 0
            return None
        self._outside += 1
        if self._outside > size // 2:
            self._losses.clear()
            self._outside = 0
        roll_back = self._outside == 1 and self.rollbacks < self.max_rollbacks
        self.rollbacks += roll_back
        return Spike(step, loss, median, score, roll_back)

    def state(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "outside": self._outside, "rollbacks": self.rollbacks}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state when a run resumes; after a rollback the window and the count stay."""
        self._losses = deque(state["losses"], maxlen=self._losses.maxlen)
        self._outside = int(state["outside"])
        self.rollbacks = int(state["rollbacks"])
