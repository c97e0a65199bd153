"""`megatron_lst`, slowed down: time to preempt, to kill, to run out of time.

LST_TEST_SECONDS pauses every rank before each step, and the file LST_TEST_HOLD does for as long as it is there;
LST_TEST_SLOW_RANK makes one rank wait for its data as well.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from megatron_lst.cli.app import main
from megatron_lst.engines.base import StepResult
from megatron_lst.engines.megatron.engine import MegatronEngine
from megatron_lst.engines.microbatches import PackedStep
from megatron_lst.patching.row import Row
from megatron_lst.training import feed

_step, _open_loader = MegatronEngine.step, feed.open_loader


def _slow_step(self: MegatronEngine, rows: Sequence[Row] | PackedStep, lr: float, **options: Any) -> StepResult:
    time.sleep(float(os.environ.get("LST_TEST_SECONDS", "0")))
    while os.path.exists(os.environ.get("LST_TEST_HOLD", "")):
        time.sleep(0.1)
    return _step(self, rows, lr, **options)


class _SlowLoader:
    def __init__(self, loader: Any) -> None:
        self._loader, self.close = loader, loader.close

    def __next__(self) -> Any:
        time.sleep(0.2)
        return next(self._loader)


def _slow_loader(*arguments: Any) -> Any:
    loader = _open_loader(*arguments)
    return _SlowLoader(loader) if os.environ.get("LST_TEST_SLOW_RANK") == os.environ.get("RANK") else loader


if __name__ == "__main__":
    MegatronEngine.step = _slow_step  # type: ignore[method-assign]
    feed.open_loader = _slow_loader  # type: ignore[assignment]
    main()
