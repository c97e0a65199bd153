"""The Python API: its names, that they import, that natural first tries work, and that importing it costs nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import megatron_lst as lst
from tests.training.tiny import write_run

NAMES = {
    "ChatFormat", "ChatTemplate", "Chunk", "Config", "Conversation", "DamagedDataError", "Document", "Engine",
    "Export", "GenerationSettings", "LstError", "Row", "RowStream", "ShardSet", "Speech", "StepResult",
    "TrainingFault", "UserError", "generate", "load_config", "load_export", "load_tokenizer", "open_engine",
    "parameters", "patch_document", "row_flops",
}  # fmt: skip


def test_the_names_stay() -> None:
    """One that goes breaks other people's programs: say so in CHANGELOG.md, and only then change this list."""
    assert set(lst.__all__) == NAMES | {"__version__"}
    assert set(dir(lst)) >= NAMES
    for name in NAMES:
        assert getattr(lst, name).__doc__, name


def test_the_types_of_the_api_are_those_of_its_stub() -> None:
    stub = (Path(lst.__file__).with_suffix(".pyi")).read_text()
    told = {line.split(" as ")[1] for line in stub.splitlines() if " as " in line and line.startswith("from ")}
    assert told == NAMES
    for name in NAMES:
        assert f"from {lst._API[name]} import {name} as {name}\n" in stub
    assert Path(lst.__file__).with_name("py.typed").exists()


def test_a_name_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match="no 'Trainer'; its API: .*load_config"):
        lst.Trainer  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, megatron_lst; print([m for m in ('torch', 'numpy', 'yaml', 'megatron') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_from_shards_to_a_step(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    config = lst.load_config(path, ["training.steps=1"])
    shards = lst.ShardSet(config.data.sources[0].shards[0])
    document = shards[0]
    assert document.id == shards.get(0).id
    chunks = {strategy: lst.patch_document(document, config, strategy) for strategy in ("static", "aligned")}
    assert np.array_equal(chunks["static"].tokens, chunks["aligned"].tokens)
    assert not np.array_equal(chunks["static"].patch_length, chunks["aligned"].patch_length)
    assert chunks["static"].patch_length.sum() == len(chunks["static"].tokens)
    with pytest.raises(lst.UserError, match="strategy='word'"):
        lst.patch_document(document, config, "word")
    rows = next(lst.RowStream(config)).rows
    assert len(rows) == config.training.global_batch
    assert lst.row_flops(config, rows[0]) > 0
    with lst.open_engine(config) as engine:
        assert np.isfinite(engine.step(rows, lr=1e-3).loss)


def test_a_first_try_that_goes_wrong_says_what_would_be_right(tmp_path: Path) -> None:
    with pytest.raises(lst.UserError, match="nothing: there is no such folder"):
        lst.ShardSet(tmp_path / "nothing")
