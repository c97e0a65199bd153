"""`megatron_lst`, slowed down: time to preempt, to kill, to run out of time.

LST_TEST_SECONDS pauses every rank before each step, and the file LST_TEST_HOLD does for as long as it is there;
LST_TEST_SLOW_RANK makes one rank wait for its data as well.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from megatron_lst.cli.app import main
from megatron_lst.engines.base import StepResult
from megatron_lst.engines.megatron.engine import MegatronEngine
from megatron_lst.patching.row import Row
from megatron_lst.training import trainer

_step, _open_loader = MegatronEngine.step, trainer.open_loader


def _slow_step(self: MegatronEngine, rows: Sequence[Row], lr: float, **options: Any) -> StepResult:
    time.sleep(float(os.environ.get("LST_TEST_SECONDS", "0")))
    while os.path.exists(os.environ.get("LST_TEST_HOLD", "")):
        time.sleep(0.1)
    return _step(self, rows, lr, **options)


@contextmanager
def _slow_loader(*arguments: Any) -> Iterator[Iterator[Any]]:
    def slowly(batches: Any) -> Iterator[Any]:
        for batch in batches:
            time.sleep(0.2)
            yield batch

    with _open_loader(*arguments) as loader:
        yield slowly(loader) if os.environ.get("LST_TEST_SLOW_RANK") == os.environ.get("RANK") else loader


if __name__ == "__main__":
    MegatronEngine.step = _slow_step  # type: ignore[method-assign]
    trainer.open_loader = _slow_loader  # type: ignore[assignment]
    main()
