"""T7 (SPEC 4) with frames of 1, 4 and 8 codes: log-probabilities, gradients and weights do not depend on the layout."""

from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.config.load import build
from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.patching.row import Row, assemble_row
from tests.reference.test_codebooks import BOOKS, chunks_of, size_of, vocabulary_of
from tests.support.ranks import RankPool

pytestmark = pytest.mark.multiprocess

LAYOUTS = {"TP2": {"tensor": 2}, "PP2": {"pipeline": 2}}
MODEL = {
    "hidden": 32, "layers": 2, "heads": 2, "ffn": 48, "local_hidden": 16, "local_heads": 2, "local_ffn": 24,
    "decoder_layers": 2, "window": 32,
}  # fmt: skip


def config_of(depth: int, seed: int = 0, **parallel: int) -> Config:
    v = vocabulary_of(depth)
    values = {
        "model": MODEL,
        "vocabulary": {
            "text_size": v.text_size, "speech_size": v.speech_size, "codebooks": list(BOOKS[depth]), "multiple": 8
        },
        "patching": {"strategy": "static", "size": size_of(depth)},
        "data": {"units": 48},
        "training": {
            "steps": 3, "global_batch": 2, "micro_batch": 1, "precision": "fp32", "lr": 0.01, "warmup_steps": 1,
            "seed": seed,
        },
        "parallel": parallel,
        "run": {"dir": "unused"},
    }  # fmt: skip
    return build(Config, values)


def rows_of(config: Config, depth: int) -> list[Row]:
    rng = np.random.default_rng(depth)
    rows = [assemble_row(chunks_of(rng, depth, "static"), 48, config.vocabulary, index=i) for i in range(2)]
    for row in rows:
        row.check(config.vocabulary)
    return rows


def measure(config: Config, depth: int) -> dict[str, Any]:
    engine = build_engine(config)
    try:
        rows = rows_of(config, depth)
        scores = engine.score(rows)
        steps = [engine.step(rows, config.training.lr) for _ in range(3)]
        return {
            "scores": np.concatenate(scores),
            "losses": [s.loss for s in steps],
            "norms": [s.grad_norm for s in steps],
            "weights": engine.export_weights(),
        }
    finally:
        engine.close()


@pytest.mark.parametrize("depth", BOOKS)
def test_t7_layouts_agree_with_one_process(ranks: RankPool, depth: int) -> None:
    alone = ranks.run(measure, 1, config_of(depth), depth)[0]
    assert (alone["scores"] < 0).sum() > 10
    for layout in LAYOUTS.values():
        results = ranks.run(measure, 2, config_of(depth, **layout), depth)
        for result in results:
            np.testing.assert_allclose(result["scores"], alone["scores"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(result["losses"], alone["losses"], rtol=1e-5)
            np.testing.assert_allclose(result["norms"], alone["norms"], rtol=1e-4)
        written = next(r["weights"] for r in results if r["weights"])
        assert set(written) == set(alone["weights"])
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(written[name], weight, rtol=2e-2, atol=2e-4, msg=name)
    # The control: weights of another seed are told apart by the same tolerance.
    other = ranks.run(measure, 1, config_of(depth, seed=1), depth)[0]
    assert np.abs(other["scores"] - alone["scores"]).max() > 1e-2
