"""Short training runs of an engine, as functions that ranks can be sent."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.patching.row import batch_hash
from megatron_lst.training.schedule import is_frozen
from tests.support.toy import toy_rows


def train(
    config: Config, steps: int = 10, save_at: int | None = None, folder: str | None = None, load: str | None = None,
    first: int = 0, asynchronous: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train on toy rows, distributed over data-parallel ranks as the loader assigns them (contiguous shares).

    Returns:
        losses, norms, batch hashes by step; a digest of the exported weights; the digest of each local parameter that
        should be the same on several ranks.
    """
    engine = build_engine(config)
    try:
        if load is not None:
            engine.load(Path(load))
        results = []
        hashes = []
        for step in range(first, steps):
            rows = toy_rows(config, config.training.global_batch, seed=step)
            hashes.append(batch_hash([row.hash for row in rows]))
            share = len(rows) // engine.data_size
            mine = rows[engine.data_rank * share : (engine.data_rank + 1) * share]
            results.append(engine.step(mine, config.training.lr, frozen=is_frozen(step + 1, config.training)))
            if save_at == step + 1:
                engine.save(Path(str(folder)), asynchronous=asynchronous)
        if asynchronous and (complete := engine.seal_save()):
            complete()
        rows = toy_rows(config, 3, seed=100)
        scores = [torch.from_numpy(s) for s in engine.score(rows)]
        weights = engine.export_weights()
        return {
            "losses": [r.loss for r in results],
            "kinds": [(r.loss_speech, r.loss_text, r.loss_marker, r.targets) for r in results],
            "norms": [r.grad_norm for r in results],
            "skipped": [r.skipped for r in results],
            "hashes": hashes,
            "scores": scores,
            "weights": weights,
            "replicas": _replicas(engine),
            "describe": engine.describe(),
            "rank": (engine.data_rank, engine.is_writer),
        }
    finally:
        engine.close()


def _replicas(engine: Any) -> dict[str, str]:
    """Digest of every local parameter, by (name in the whole model, which shard): equal keys must be equal bits."""
    if not hasattr(engine, "chunks"):
        return {}
    from megatron_lst.engines.sharded_checkpoint import global_name
    from megatron_lst.engines.weights_io import local_parameters

    engine._gather_parameters()
    found = {}
    for chunk in engine.chunks:
        for name, parameter, spec in local_parameters([chunk], engine.config):
            shard = 0 if spec.kind == "whole" else engine.state.tensor_rank
            digest = hashlib.sha256(parameter.detach().float().numpy().tobytes()).hexdigest()
            found[f"{global_name(name, chunk.first_layer)}@{shard}"] = digest
    return found


def score_everywhere(config: Config, rows: int) -> list[Any]:
    """Scores of all rows on this rank, distributed over the data-parallel ranks and gathered."""
    from megatron_lst.cli.models import score_on_all_ranks

    engine = build_engine(config)
    try:
        return score_on_all_ranks(engine, toy_rows(config, rows, seed=7))
    finally:
        engine.close()
