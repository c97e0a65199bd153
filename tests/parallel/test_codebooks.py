"""From tokens of 8 codebooks without word times to a curve on TP2 x PP2, an export, and whole frames said by it.

The codes are residual k-means over real features of the embedded recordings (`data_prep/make_rvq.py`).
"""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_lst.config.load import build, load_config
from megatron_lst.config.schema import Config
from megatron_lst.documents.shards import ShardSet
from megatron_lst.engines import build_engine
from megatron_lst.inference import GenerationSettings, generate, load_export, write_export
from megatron_lst.patching.chunks import prompt_tokens, speech_span
from tests.support.ranks import RankPool

pytestmark = pytest.mark.multiprocess

BOOKS, ENTRIES, STEPS = 8, 32, 10
RUN = """
base: [{train}]
model: {{hidden: 32, layers: 2, heads: 2, ffn: 48, local_hidden: 16, local_heads: 2, local_ffn: 24, decoder_layers: 2,
  window: 32}}
patching: {{strategy: static, size: {size}}}
data: {{units: 64, workers: 0}}
training: {{steps: 10, global_batch: 4, micro_batch: 2, precision: fp32, lr: 0.001, warmup_steps: 1}}
run: {{dir: {run}}}
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of `lst prep import`: recordings with their transcripts as one segment each."""
    import make_rvq
    from lst_prep.importing.config import ImportConfig
    from lst_prep.importing.pipeline import run_import

    folder = tmp_path_factory.mktemp("rvq")
    assert make_rvq.make(folder / "talks.parquet", BOOKS, ENTRIES, Fraction(25, 2), limit=24) == 24
    columns = {"id": "id", "tokens": "codes", "text": "text", "seconds": "seconds"}
    source = {"name": "talks", "format": "parquet", "path": str(folder / "talks.parquet"), "columns": columns}
    values = {
        "out": str(folder / "out"),
        "codec": {"name": "residual", "rate": 12.5, "codebooks": [ENTRIES] * BOOKS, "decoder": "no decoder"},
        "sources": [source],
        "jobs": {"workers": 1},
    }
    run_import(build(ImportConfig, values), quiet=True)
    return folder / "out"


def config_of(imported: Path, size: int = BOOKS, **parallel: Any) -> Config:
    path = imported / f"run-{size}.yaml"
    path.write_text(RUN.format(train=imported / "train.yaml", run=imported / "run", size=size))
    config = load_config(str(path))
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **parallel))


def train(config: Config) -> dict[str, Any]:
    """Ten steps on the stream of this rank's share."""
    from megatron_lst.data import RowStream

    engine = build_engine(config)
    try:
        stream = RowStream(config, engine.data_rank, engine.data_size)
        rows = [next(stream).rows for _ in range(STEPS)]
        for row in (row for step in rows for row in step):
            row.check(config.vocabulary)
        results = [engine.step(step, config.training.lr) for step in rows]
        return {
            "losses": [r.loss for r in results],
            "norms": [r.grad_norm for r in results],
            "hashes": [[row.hash for row in step] for step in rows],
            "weights": engine.export_weights(),
            "writer": engine.is_writer,
        }
    finally:
        engine.close()


def relative(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def alone(ranks: RankPool, imported: Path) -> dict[str, Any]:
    return ranks.run(train, 1, config_of(imported))[0]


@pytest.fixture(scope="module")
def together(ranks: RankPool, imported: Path) -> list[dict[str, Any]]:
    return ranks.run(train, 4, config_of(imported, tensor=2, pipeline=2, sequence=True))


def test_tp2_pp2_gives_the_curve_of_one_process(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    for result in together:
        assert result["hashes"] == alone["hashes"]
        assert relative(result["losses"], alone["losses"]) < 1e-5
        assert relative(result["norms"], alone["norms"]) < 1e-4
    assert alone["losses"][-1] < alone["losses"][0]


def test_patches_of_two_frames_are_another_curve(ranks: RankPool, imported: Path, alone: dict[str, Any]) -> None:
    """The control of the tolerance above."""
    other = ranks.run(train, 1, config_of(imported, size=2 * BOOKS))[0]
    assert relative(other["losses"], alone["losses"]) > 1e-3


def test_the_trained_model_and_its_export_say_whole_frames(
    imported: Path, together: list[dict[str, Any]], tmp_path: Path
) -> None:
    from megatron_lst.cli.app import app
    from megatron_lst.training.provenance import describe_sources

    (weights,) = (r["weights"] for r in together if r["writer"])
    config = config_of(imported)
    folder = write_export(tmp_path / "export", weights, config, describe_sources(config))
    opened = load_export(folder)
    v = opened.vocabulary
    assert v.depth == BOOKS and opened.patch_size == BOOKS
    said = ShardSet.open(imported / "talks").get(0).speech_ids[:12]
    prompt = prompt_tokens([speech_span(said)], v)
    for modality in ("speech", "any"):
        for fixed in (False, True):
            settings = GenerationSettings(
                max_tokens=83, min_tokens=40, modality=modality, temperature=1.0, fixed_shapes=fixed,  # type: ignore[arg-type]
            )  # fmt: skip
            (result,), _ = generate(opened.model(), [prompt], settings)
            assert v.frame_fault(np.array([*prompt, *result.tokens])) is None
            assert len(result.tokens) >= 40
    codes = said - v.offsets
    np.save(tmp_path / "prompt.npy", codes)
    arguments = ["generate", str(folder), "--units", str(tmp_path / "prompt.npy"), "--to", "speech"]
    run = CliRunner().invoke(app, [*arguments, "--max-tokens", "44", "--out", str(tmp_path / "said.wav")])
    assert run.exit_code == 0, run.output
    written = np.load(tmp_path / "said.npy")
    assert written.ndim == 2 and written.shape[1] == BOOKS and len(codes) <= len(written) <= len(codes) + 5
    assert (written[: len(codes)] == codes).all() and 0 <= written.min() <= written.max() < ENTRIES
    assert "codes: " in run.output and "no decoder" in run.output and not (tmp_path / "said.wav").exists()
    broken = CliRunner().invoke(app, ["generate", str(folder), "--units", "1 2 3", "--to", "speech"])
    assert broken.exit_code and "3 codes; expected frames of 8" in str(broken.exception or broken.output)
