"""metrics.jsonl and TensorBoard: one object a step, each step once."""

import contextlib
import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_lst.files import write_text


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics.jsonl; a line cut by a kill is left out."""
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


class MetricsWriter:
    """Writes one object a step; on resume it first drops what lies past the checkpoint.

    Args:
        run: the run folder.
        after_step: the step of the checkpoint that training goes on from; 0 for a new run.
    """

    def __init__(self, run: Path, after_step: int) -> None:
        self._path = run / "metrics.jsonl"
        kept = {r["step"]: r for r in read_metrics(run) if r["step"] <= after_step}
        write_text(self._path, "".join(json.dumps(kept[step]) + "\n" for step in sorted(kept)))
        self._file = self._path.open("a")
        self._board: Any = None
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=after_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one step. Values that are not finite become null, so that every reader can parse the line."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in clean.items():
                if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._board.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
