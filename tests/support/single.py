"""One-process engines for tests, and their logits."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.patching.row import Row


@contextmanager
def engine_of(config: Config) -> Iterator[Any]:
    engine = build_engine(config)
    try:
        yield engine
    finally:
        engine.close()


def logits_of(engine: Any, row: Row) -> np.ndarray:
    """Logits [N, V] of one row; under `text_path: direct` 0 where the row has no label."""
    from megatron_lst.model.batch import make_batch

    labelled = dataclasses.replace(row, labels=np.full_like(row.labels, engine.config.vocabulary.bos))  # all of them
    chunk = engine.chunks[0].eval()
    with torch.no_grad():
        logits = chunk.logits(make_batch([labelled], engine.config, engine.device))
    return logits[: len(row.tokens)].numpy().copy()
