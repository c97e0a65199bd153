"""`training.clip` means the same on every engine: the largest norm of the gradient, and 0 never scales it."""

import pytest
import torch

pytest.importorskip("deepspeed")

from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows

ENGINES = {
    "megatron": {"engine__name": "megatron"},
    "zero-0": {"engine__name": "deepspeed", "engine__zero_stage": 0},
    "zero-1": {"engine__name": "deepspeed", "engine__zero_stage": 1},
    "zero-2": {"engine__name": "deepspeed", "engine__zero_stage": 2},
}


def stepped(engine: str, clip: float) -> tuple[list[float], torch.Tensor]:
    """Gradient norms of three steps, and all weights after them, on one process."""
    # An epsilon that is large beside the gradients: Adam's update is then proportional to them, and clipping shows.
    config = toy_config(training__clip=clip, training__eps=0.5, **ENGINES[engine])
    rows = toy_rows(config, 8)
    with engine_of(config) as running:
        norms = [running.step(rows, lr=1.0).grad_norm for _ in range(3)]
        weights = running.export_weights()
    return norms, torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.parametrize("engine", ENGINES)
def test_0_is_no_clipping(engine: str) -> None:
    free_norms, free = stepped(engine, clip=1e9)
    norms, weights = stepped(engine, clip=0)
    assert norms == pytest.approx(free_norms, rel=1e-6)
    torch.testing.assert_close(weights, free, rtol=0, atol=1e-6)
    norms, clipped = stepped(engine, clip=free_norms[0] / 100)
    assert norms[0] == pytest.approx(free_norms[0], rel=1e-6), "the norm is that before clipping"
    assert (clipped - free).abs().max() > 1e-3, "the control: clipping would have shown"


def test_the_engines_agree_without_clipping() -> None:
    norms, weights = stepped("megatron", clip=0)
    for engine in ("zero-0", "zero-1"):
        others, found = stepped(engine, clip=0)
        assert others == pytest.approx(norms, rel=1e-4)
        torch.testing.assert_close(found, weights, rtol=0, atol=1e-4)
