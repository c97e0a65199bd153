"""Progress of a stage, with the real-time factor where audio is counted."""

from typing import IO

from megatron_lst.progress import Progress


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

    def advance(self, items: int = 1, audio_seconds: float = 0.0, note: str = "") -> None:
        """Count finished items."""
        self._audio_seconds += audio_seconds
        self._note = note or self._note
        rate = f"{self._audio_seconds / max(self.elapsed, 1e-6):,.0f}x real time" if self._audio_seconds else ""
        self.update(self.done + items, ", ".join(part for part in (rate, self._note) if part))
