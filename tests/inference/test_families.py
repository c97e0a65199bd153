"""Each family of language models: text logits of the warm-started LST equal those of the real class of transformers,
in inference, in the oracle, and in the Megatron model on two tensor-parallel ranks and on two pipeline stages."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from megatron_lst.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    RopeScalingConfig,
    TrainingConfig,
)
from megatron_lst.engines import build_engine
from megatron_lst.errors import UserError
from megatron_lst.inference.families import FAMILIES
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.reference import ReferenceModel
from tests.support.checkpoints import LLAMA3, THEIRS, TOKENS, V, expected_of, fitted, logits, saved, started
from tests.support.ranks import RankPool

Weights = dict[str, torch.Tensor]


def _without_biases(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    return config, {name: 0 * w if name.endswith("proj.bias") else w for name, w in weights.items()}


def _without_head_norms(config: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    kept = {name: w for name, w in weights.items() if not name.endswith(("attention.q_norm.weight", "k_norm.weight"))}
    kept |= {name: weights[name] for name in weights if "cross_attention" in name}
    return replace(config, qk_norm=False), kept


def _with(**changes: Any) -> Callable[[ModelConfig, Weights], tuple[ModelConfig, Weights]]:
    return lambda config, weights: (replace(config, **changes), weights)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[ModelConfig, Weights], tuple[ModelConfig, Weights]]]] = {
    "llama 2, tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}, _with(rope_theta=100.0)),
    "llama 3.1, rope scaled": (
        "llama", {"head_dim": 8, "rope_scaling": LLAMA3}, _with(rope_scaling=RopeScalingConfig()),
    ),
    "mistral": ("mistral", {"head_dim": 8, "num_key_value_heads": 1}, _with(rope_theta=100.0)),
    "qwen 2.5, tied": ("qwen2", {"tie_word_embeddings": True}, _without_biases),
    "qwen 2": ("qwen2", {"use_sliding_window": False, "sliding_window": 4}, _without_biases),
    "qwen 3, heads wider than hidden / heads": ("qwen3", {"head_dim": 6}, _without_head_norms),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "num_hidden_layers": 4}, _with(no_rope_every=0)),
}  # fmt: skip
"""Family, what its configuration holds, and a change that the comparison must notice."""


def text_row(tokens: list[int] = TOKENS) -> Row:
    ids = np.array(tokens, np.int32)
    return assemble_row([Chunk(ids, np.ones_like(ids), np.zeros(len(ids), bool))], 16, V)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def oracle_logits(config: ModelConfig, weights: Weights) -> torch.Tensor:
    oracle = ReferenceModel(config, V)
    oracle.load_state_dict(weights)
    with torch.no_grad():
        return oracle(text_row())[: len(TOKENS), :24]


def test_every_family_has_a_case() -> None:
    assert {kind for kind, _, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_text_logits_equal_the_language_models(tmp_path: Path, case: str) -> None:
    kind, changes, broken = CASES[case]
    expected = expected_of(saved(tmp_path / "theirs", kind, shard="3KB", **changes))
    config = fitted(tmp_path / "theirs")
    result, weights = started(tmp_path / "theirs", config)
    assert not result.unused
    assert not result.notes
    assert all(not name.startswith("global_transformer.") for name in result.fresh)
    assert_equal(logits(config, weights), expected)
    assert_equal(oracle_logits(config, weights), expected)
    # The comparison can fail: without what the family has besides, the logits are others.
    assert (logits(*broken(config, weights)) - expected).abs().max() > 1e-3
    # A baseline has a place for all of it too.
    baseline = replace(config, kind="baseline")
    assert_equal(logits(baseline, started(tmp_path / "theirs", baseline)[1]), expected)


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_in_bfloat16(tmp_path: Path, case: str) -> None:
    kind, changes, _ = CASES[case]
    expected = expected_of(saved(tmp_path / "theirs", kind, shard="3KB", dtype=torch.bfloat16, **changes))
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    config = fitted(tmp_path / "theirs")
    assert_equal(logits(config, started(tmp_path / "theirs", config)[1]), expected)


def text_scores(parallel: ParallelConfig, models: list[tuple[ModelConfig, Path]]) -> list[torch.Tensor]:
    """log p of every text id at every token, over the text ids alone, by the Megatron model: [tokens, 24] each.

    Scores are losses of labels, the only thing that a last pipeline stage gives: one row for each id.
    """
    found = []
    for model, path in models:
        config = Config(
            vocabulary=V,
            model=model,
            data=DataConfig(units=16),
            parallel=parallel,
            training=TrainingConfig(global_batch=1, micro_batch=1, precision="fp32"),
        )
        engine = build_engine(config)
        try:
            engine.load_weights(load_file(path))
            row = text_row()
            rows = [replace(row, labels=np.full_like(row.labels, label)) for label in range(24)]
            scores = np.stack(engine.score(rows), 1)[: len(TOKENS)]
        finally:
            engine.close()
        found.append(torch.log_softmax(torch.from_numpy(scores), -1))
    return found


@pytest.mark.multiprocess
@pytest.mark.parametrize("parallel", [ParallelConfig(tensor=2, sequence=True), ParallelConfig(pipeline=2)], ids=str)
def test_megatron_gives_the_same(tmp_path: Path, ranks: RankPool, parallel: ParallelConfig) -> None:
    models: list[tuple[ModelConfig, Path]] = []
    broken: list[tuple[ModelConfig, Path]] = []
    expected = []
    for number, (kind, changes, spoil) in enumerate(CASES.values()):
        folder = tmp_path / str(number)
        expected.append(torch.log_softmax(expected_of(saved(folder, kind, **changes)), -1))
        config = fitted(folder)
        weights = started(folder, config)[1]
        for kept, (model, tensors) in ((models, (config, weights)), (broken, spoil(config, weights))):
            kept.append((model, tmp_path / f"{number}-{kept is broken}.safetensors"))
            save_file(tensors, kept[-1][1])
    results = ranks.run(text_scores, 2, parallel, models + broken)
    for result in results:
        for found, wanted in zip(result[: len(models)], expected, strict=True):
            assert_equal(found, wanted)
        for found, wanted in zip(result[len(models) :], expected, strict=True):
            assert (found - wanted).abs().max() > 1e-3


VERSION_5 = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, transformers
assert transformers.__version__.startswith("5."), transformers.__version__
for kind, folder, settings, tokens in eval(sys.argv[2]):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    for p in model.parameters():
        if p.dim() == 1: p.data.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    with torch.no_grad(): torch.save(model(torch.tensor([tokens])).logits[0], folder + "/expected.pt")
"""


def test_checkpoints_of_transformers_5(tmp_path: Path) -> None:
    """Real ones, where LST_TRANSFORMERS_5 names a folder of `pip install --target`."""
    place = os.environ.get("LST_TRANSFORMERS_5")
    if place is None:
        pytest.skip("LST_TRANSFORMERS_5 does not name a folder with transformers 5 (pip install --target FOLDER)")
    jobs = []
    for number, (kind, changes, _) in enumerate(CASES.values()):
        changes = dict(changes)
        rope = changes.pop("rope_scaling", {"rope_type": "default"})
        settings = {**THEIRS, "sliding_window": None, **changes, "rope_parameters": {**rope, "rope_theta": 500.0}}
        jobs.append((kind, str(tmp_path / str(number)), settings, TOKENS))
    subprocess.run([sys.executable, "-c", VERSION_5, place, repr(jobs)], check=True)
    for (_, folder, _, _), (_, _, spoil) in zip(jobs, CASES.values(), strict=True):
        path = Path(folder)
        assert "rope_theta" not in json.loads((path / "config.json").read_text())
        expected, config = torch.load(path / "expected.pt", weights_only=True), fitted(path)
        weights = started(path, config)[1]
        assert_equal(logits(config, weights), expected)
        assert (logits(*spoil(config, weights)) - expected).abs().max() > 1e-3
        with pytest.raises(UserError, match=r"model.rope_theta: 501.0 here, 500.0 there"):
            started(path, replace(config, rope_theta=501.0))
