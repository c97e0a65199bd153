"""What the trainer knows of an engine (contract 3). Megatron and DeepSpeed both give this, and the same losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from megatron_lst.engines.microbatches import PackedStep
from megatron_lst.initialisation import Initialiser
from megatron_lst.patching.row import Row


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step gives back, the same on every rank.

    Attributes:
        loss: cross-entropy summed over the global batch / number of targets, nats.
        loss_speech, loss_text, loss_marker: the same over targets that are speech units, text pieces (BOS, EOS
            among them) and `<t>`/`<s>` alone; NaN where the batch has none.
        grad_norm: norm of the global gradient before clipping.
        skipped: loss or gradient was not finite: nothing was updated.
        targets: number of counted labels in the global batch.
        numbers: sums over all ranks of what each gave to `Engine.step`.
    """

    loss: float
    loss_speech: float
    loss_text: float
    loss_marker: float
    grad_norm: float
    skipped: bool
    targets: int
    numbers: tuple[float, ...] = ()


Numbers = Callable[[], Sequence[float]]
"""A rank's own numbers, as many on each, called as the step's sums are about to be reduced."""


def no_numbers() -> tuple[float, ...]:
    return ()


class Engine(Protocol):
    """One rank's part of a model that is spread over ranks; every method is collective over all ranks.

    Attributes:
        data_rank, data_size: which share of the global batch this rank feeds (data-parallel coordinates).
        is_writer: true on the one rank that writes the run folder.
        data_group: one rank of each share; those of a model-parallel group are in different ones.
        device: where tensors live.
        initialiser: counts the weights that were drawn.
    """

    data_rank: int
    data_size: int
    is_writer: bool
    data_group: dist.ProcessGroup
    device: torch.device
    initialiser: Initialiser

    def init_weights(self) -> None:
        """Draw fresh weights from `training.seed`, the same on every layout; a rank draws its own part alone."""
        ...

    def pack(self, rows: Sequence[Row]) -> PackedStep:
        """What `step` makes of rows first, for callers that do it ahead: on any thread, without a collective.

        Raises:
            UserError: rows that this model or `training.micro_batch` cannot take.
        """
        ...

    def step(
        self, rows: Sequence[Row] | PackedStep, lr: float, *, frozen: bool = False, numbers: Numbers = no_numbers
    ) -> StepResult:
        """One optimiser step.

        Args:
            rows: this data-parallel rank's rows of the global batch, in global order;
                global_batch / data_size of them. Or what `pack` made of them.
            lr: learning rate of this step.
            frozen: warm-started weights stand still (`engines.freezing`); for runs with `freeze_global_steps` alone.
            numbers: summed over all ranks in the reduction that the losses take; whole numbers stay exact below 2^53.
        """
        ...

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """log p(label) of every token, without a gradient.

        Args:
            rows: this data-parallel rank's rows; any number, the same on every data-parallel rank.

        Returns:
            float32 [N] for each row, nats; 0 where the label is IGNORE. The same on every rank of a
            model-parallel group.
        """
        ...

    def save(
        self, folder: Path, *, asynchronous: bool = False, ready: Callable[[], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Write model, optimizer and RNG into an existing, empty folder. Asynchronous: copy them to the host and write
        while training goes on, until `seal_save`.

        Args:
            ready: called before the first file is written, in the thread that writes; returns when the folder is
                there, and what it raises is an error of this save.

        Returns:
            Entries of the manifest by file name (size, hash) on the writer; nothing elsewhere, and while it writes.

        Raises:
            OSError: on every rank, where one could not write.
        """
        ...

    def finish_saves(self, *, wait: bool) -> bool:
        """True when this rank has written its files of an asynchronous save. Not collective.

        Raises:
            OSError: they could not be written.
        """
        ...

    def seal_save(self) -> Callable[[], dict[str, dict[str, Any]]] | None:
        """End an asynchronous save; waits for every rank.

        Returns:
            On the writer what is left to do, perhaps in a thread: it writes the index and gives the entries of the
            manifest by file name (size, hash), or raises OSError. None elsewhere.

        Raises:
            OSError: on every rank, where one could not write.
        """
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on any layout of the same engine.

        Raises:
            UserError: the checkpoint is another model's.
            DamagedDataError: the checkpoint is not complete.
        """
        ...

    def export_weights(self) -> dict[str, torch.Tensor] | None:
        """Full fp32 weights under the canonical names (those of `reference`) on the writer, None elsewhere."""
        ...

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set weights from canonical names; fp32 master copies follow. Every rank passes all of them.

        Raises:
            UserError: a name or a shape does not match; all mismatches are listed.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Layout, chosen accelerators, parameter count, pipeline split: what the run's log should say once."""
        ...

    def close(self) -> None:
        """Leave the process groups."""
        ...
