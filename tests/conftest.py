"""Settings for every test: one thread a process, and a GPU only for the tests that are about it."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.ranks import RankPool

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Without `-m gpu` a GPU is hidden: the suite is about the CPU, where ranks share a machine (NCCL refuses two of
    them on one GPU) and results lie in the host's memory."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


LONG = ("training/test_chaos.py", "parallel/test_layouts.py", "engines/test_deepspeed.py", "training/test_terminal.py")
"""Files that take minutes. They begin: one that came last would keep one worker busy while the others have nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))


@pytest.fixture(scope="session")
def ranks() -> "RankPool":
    """Real processes on gloo."""
    from tests.support.ranks import RankPool

    return RankPool()


@pytest.fixture(autouse=True)
def free_threads_of_closed_engines() -> Iterator[None]:
    """Engines are full of cycles: until these are collected, each process group keeps a thread that polls."""
    yield
    tasks = Path("/proc/self/task")
    if tasks.is_dir() and len(list(tasks.iterdir())) > 150:
        gc.collect()
