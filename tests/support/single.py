"""One-process engines for tests, their batches and their logits."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.patching.host_batch import host_batch
from megatron_lst.patching.row import Row


@contextmanager
def engine_of(config: Config) -> Iterator[Any]:
    engine = build_engine(config)
    try:
        yield engine
    finally:
        engine.close()


def make_batch(rows: Sequence[Row], config: Config, device: torch.device) -> Any:
    """The `Batch` of one micro-batch, as an engine of this process makes it."""
    from megatron_lst.model.batch import to_device

    return to_device(host_batch(rows, config), device)


def logits_of(engine: Any, row: Row) -> np.ndarray:
    """Logits [N, V] of one row; under `text_path: direct` 0 where the row has no label."""
    labelled = dataclasses.replace(row, labels=np.full_like(row.labels, engine.config.vocabulary.bos))  # all of them
    chunk = engine.chunks[0].eval()
    with torch.no_grad():
        logits = chunk.logits(make_batch([labelled], engine.config, engine.device))
    return logits[: len(row.tokens)].numpy().copy()
