"""metrics.jsonl and TensorBoard: one object a step, each step once."""

import contextlib
import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_lst.files import write_text


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


_TAGS: dict[str, str] = {
    "loss": "loss/all",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "seconds": "speed/seconds",
    "units_per_second": "speed/units_per_second",
    "mfu": "speed/mfu",
}
"""Fields whose tag in TensorBoard does not follow from their name, see `tensorboard_tag`."""


def tensorboard_tag(field: str) -> str:
    """GROUP/NAME of a field of metrics.jsonl: `loss/speech` of `loss_speech`, `heldout/text_loss` of
    `heldout_text_loss`; what neither is that nor stands in `_TAGS` counts data: `data/tokens`."""
    if field in _TAGS:
        return _TAGS[field]
    group, _, name = field.partition("_")
    # TensorBoard takes no ">".
    return f"{group}/{name}".replace("->", "_to_") if group in ("loss", "heldout") else f"data/{field}"


class MetricsWriter:
    """Writes one object a step; on resume it first drops what lies past the checkpoint.

    A full disk does not end a run: what could not be written waits in memory for the next step, or for the end.

    Args:
        run: the run folder.
        after_step: the step of the checkpoint that training goes on from; 0 for a new run.
        tell: takes a sentence when writing begins to fail, and when it works again.
        config_yaml: the run's configuration, for TensorBoard's text tab.
    """

    def __init__(
        self,
        run: Path,
        after_step: int,
        tell: Callable[[str], None] = lambda sentence: None,
        config_yaml: str = "",
    ) -> None:
        self._path, self._tell = run / "metrics.jsonl", tell
        kept = {r["step"]: r for r in read_metrics(run) if r["step"] <= after_step}
        write_text(self._path, "".join(json.dumps(kept[step]) + "\n" for step in sorted(kept)))
        self._file = self._path.open("ab", buffering=0)
        self._waiting, self._failing = b"", False
        self._board: Any = None
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=after_step + 1)
            # The tab reads Markdown: indented lines are shown as they are.
            self._board.add_text("configuration", textwrap.indent(config_yaml, "    "), after_step)

    def write(self, record: dict[str, Any]) -> None:
        """Append one step. Values that are not finite become null, so that every reader can parse the line."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._waiting += json.dumps(clean).encode() + b"\n"
        self._write_waiting()
        if self._board is not None:
            try:
                for key, value in clean.items():
                    if isinstance(value, dict):  # raw_tokens, by source
                        for source, count in value.items():
                            self._board.add_scalar(f"data/{key}/{source}", count, record["step"])
                    elif key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                        self._board.add_scalar(tensorboard_tag(key), value, record["step"])
            except OSError as error:
                self._board = None
                self._tell(f"TensorBoard's files cannot be written ({error}): it has no more steps of this start")

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

    def close(self) -> None:
        self._write_waiting()
        if self._waiting:
            self._tell(f"{self._path} lacks {self._waiting.count(bytes([10]))} lines: it could not be written")
        self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
