"""metrics.jsonl: one object a step, each step once; the trackers get the same."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_lst.config.schema import Config
from megatron_lst.files import write_text
from megatron_lst.training.trackers import Trackers, open_trackers


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics.jsonl; a line cut by a kill, or damaged by a disk, is left out."""
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


class MetricsWriter:
    """Writes one object a step; on resume it first drops what lies past the checkpoint.

    A full disk does not end a run: what could not be written waits in memory for the next step, or for the end.

    Args:
        run: the run folder.
        after_step: the step of the checkpoint that training goes on from; 0 for a new run.
        tell: takes a sentence when writing begins to fail, and when it works again.
        trackers: get every step as well.
    """

    def __init__(
        self,
        run: Path,
        after_step: int,
        tell: Callable[[str], None] = lambda sentence: None,
        trackers: Trackers | None = None,
    ) -> None:
        self._path, self._tell = run / "metrics.jsonl", tell
        kept = {r["step"]: r for r in read_metrics(run) if r["step"] <= after_step}
        write_text(self._path, "".join(json.dumps(kept[step]) + "\n" for step in sorted(kept)))
        self._file = self._path.open("ab", buffering=0)
        self._waiting, self._failing = b"", False
        self._trackers = trackers or Trackers(run)

    def before_steps(self, fields: dict[str, Any]) -> None:
        """What was measured before the first step: for the trackers, which have a step 0."""
        self._trackers.scalars(0, _finite(fields))

    def samples(self, step: int) -> None:
        """Send what is new in RUN/samples to the trackers."""
        self._trackers.samples(step)

    def write(self, record: dict[str, Any]) -> None:
        """Append one step. Values that are not finite become null, so that every reader can parse the line."""
        clean = _finite(record)
        self._waiting += json.dumps(clean).encode() + b"\n"
        self._write_waiting()
        self._trackers.scalars(record["step"], clean)

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not self._failing:
                self._tell(f"{self._path} cannot be written ({error.strerror}): its lines wait for room")
            self._failing = True
            return
        if self._failing:
            self._failing = False
            self._tell(f"{self._path} has all steps again")

    def close(self, failed: bool = False) -> None:
        self._write_waiting()
        if self._waiting:
            self._tell(f"{self._path} lacks {self._waiting.count(bytes([10]))} lines: it could not be written")
        self._file.close()
        self._trackers.close(failed)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def open_metrics(config: Config, after_step: int, config_yaml: str, tell: Callable[[str], None]) -> MetricsWriter:
    """The writer of a run with its trackers; see `MetricsWriter`."""
    run = Path(config.run.dir)
    last = max((record["step"] for record in read_metrics(run)), default=-1)
    return MetricsWriter(run, after_step, tell, open_trackers(config, after_step, last, config_yaml, tell))
