"""What the ranks say to each other beside the step: nothing in an ordinary step, a few messages around a save."""

from collections import Counter
from typing import Any

import pytest
import torch.distributed as dist

from megatron_lst.config.schema import Config
from megatron_lst.training import trainer
from megatron_lst.training.ranks import Ranks
from tests.support.ranks import RankPool


def messages_by_step(config: Config, old_way: bool) -> dict[int, int]:
    """Collectives of the trainer's own, and object messages of anybody's, during each step."""
    found: Counter[int] = Counter()
    step = [0]
    for owner, names in ((Ranks, ("max", "sum", "barrier", "collect", "broadcast_object")),
                         (dist, ("gather_object", "broadcast_object_list", "all_gather_object"))):  # fmt: skip
        for name in names:
            plain = getattr(owner, name)

            def counted(*arguments: Any, plain: Any = plain, **options: Any) -> Any:
                found[step[0]] += 1
                return plain(*arguments, **options)

            setattr(owner, name, counted)
    one_step = trainer._Run._one_step

    def watched(self: Any, *arguments: Any) -> Any:
        step[0] = self.step + 1
        if old_way:
            self.ranks.max(0)
        return one_step(self, *arguments)

    trainer._Run._one_step = watched  # type: ignore[method-assign]
    trainer.train(config)
    return dict(found)


@pytest.mark.multiprocess
@pytest.mark.parametrize("asynchronous", [True, False])
def test_an_ordinary_step_has_no_message_of_its_own(tiny, ranks: RankPool, asynchronous: bool) -> None:
    """Steps 1 to 3 and, of a synchronous save at step 4, 5 to 7. What asks in each step shows (the control)."""
    config = tiny(training__steps=9, checkpoint__every=4, checkpoint__asynchronous=asynchronous)
    for found in ranks.run(messages_by_step, 2, config, False):
        assert found[0] > 0
        assert found[4] > 0
        assert not any(found.get(step) for step in (1, 2, 3))
        around = sum(found.get(step, 0) for step in range(4, 8))
        assert around <= 12
        if not asynchronous:
            assert not any(found.get(step) for step in (5, 6, 7))
