"""The ready configurations: what they say fits together, and the page's own commands work on real features."""

from pathlib import Path

import numpy as np
import pytest

from lst_prep.importing.config import ImportConfig
from lst_prep.importing.pipeline import run_import
from megatron_lst.config import load_config
from megatron_lst.config.load import build, read_yaml
from megatron_lst.documents.shards import ShardSet

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "import").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_import_and_patching_of_a_codec_belong_together(name: str, tmp_path: Path) -> None:
    codec = build(ImportConfig, read_yaml(CONFIGS / "import" / f"{name}.yaml")).codec.codec()
    run = tmp_path / "run.yaml"
    run.write_text(f"base: [{CONFIGS / 'lst-1b.yaml'}, {CONFIGS / 'codecs' / f'{name}.yaml'}]\n")
    config = load_config(run)
    vocabulary = config.vocabulary
    assert (vocabulary.codebooks, vocabulary.rate) == (codec.codebooks, codec.rate)
    assert config.patching.size % codec.depth == 0
    units = codec.rate * codec.depth / config.patching.size
    assert units in (6.25, 12.5)  # as the page's table says


def test_there_are_four() -> None:
    assert len(NAMES) == 4


def test_residual_codes_of_the_corpus_import_and_train(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_rvq", CONFIGS.parent / "data_prep" / "make_rvq.py")
    assert spec is not None and spec.loader is not None
    make_rvq = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_rvq)
    assert make_rvq.make(tmp_path / "talks.parquet", depth=4, size=16, limit=6) == 6
    codebooks = [16, 16, 16, 16]
    values = {
        "out": str(tmp_path / "out"),
        "codec": {"name": "rvq", "rate": 12.5, "codebooks": codebooks},
        "sources": [
            {
                "name": "talks",
                "format": "parquet",
                "path": str(tmp_path / "talks.parquet"),
                "columns": {"id": "id", "tokens": "codes", "text": "text", "seconds": "seconds"},
            }
        ],
        "jobs": {"workers": 1},
    }
    summary = run_import(build(ImportConfig, values), quiet=True)
    assert summary is not None and summary["rejected"] == {}
    shards = ShardSet.open(tmp_path / "out/talks")
    assert shards.codec is not None
    codes = np.concatenate([shards.codec.codes(document.speech_ids) for document in shards])
    # Each codebook tells something that the others do not: none is nearly constant, nor a copy of another.
    for book in range(4):
        assert len(np.unique(codes[:, book])) > 8
    assert all((codes[:, a] != codes[:, b]).mean() > 0.5 for a in range(4) for b in range(a))
    run = tmp_path / "run.yaml"
    run.write_text(f"base: [{CONFIGS / 'tokens-demo.yaml'}, out/train.yaml]\n")
    config = load_config(run)
    assert config.vocabulary.codebooks == (16,) * 4 and [s.name for s in config.data.sources] == ["talks"]
    from megatron_lst.data.mixture import open_mixture
    from megatron_lst.data.stream import Stream

    stream = Stream(open_mixture(config, config.data.sources, 1), 0)
    for _ in range(8):
        stream.next_row().check(config.vocabulary)
