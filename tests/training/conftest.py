"""A model and data small enough that a step takes some tens of milliseconds."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.config.load import dump_yaml
from megatron_lst.config.schema import Config
from megatron_lst.terminal import STOP_SIGNALS
from tests.data.conftest import shard_sets  # noqa: F401
from tests.data.toy import make_config, on_disk

TINY_MODEL: dict[str, Any] = {
    "model__hidden": 32,
    "model__layers": 2,
    "model__heads": 2,
    "model__local_hidden": 16,
    "model__local_heads": 2,
    "model__decoder_layers": 1,
    "model__window": 32,
    "training__precision": "fp32",
    "training__warmup_steps": 2,
    "training__lr": 1e-2,
    "training__global_batch": 4,
    "training__micro_batch": 2,
    "data__units": 64,
    "data__streams": None,
}


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Leaving StopSignals ignores late signals for good, which later tests and child processes would inherit."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny(shard_sets: dict[str, Path], tmp_path: Path):  # noqa: F811
    """Makes the configuration of a tiny run in a folder of its own: tiny("name", training__steps=8)."""

    def make(name: str = "run", **changes: Any) -> Config:
        folder = {"run__dir": str(tmp_path / name)}
        return on_disk(make_config(**{**TINY_MODEL, **folder, **changes}), shard_sets)

    return make


@pytest.fixture
def tiny_file(tiny, tmp_path: Path):
    """The same as a YAML file, for runs in processes of their own."""

    def write(name: str = "run", **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_yaml(tiny(name, **changes)))
        return path

    return write
