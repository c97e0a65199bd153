"""The plan against what others measured: one table of rates for all of it."""

from dataclasses import replace

import pytest

from megatron_lst.planning import rates
from megatron_lst.planning.devices import find_device
from tests.planning.published import RUNS, planned

PLANNED = {run: planned(run) for run in RUNS}


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_published_speeds_are_met_within_15_percent(run) -> None:
    assert PLANNED[run][0] == pytest.approx(run.tokens_per_second, rel=0.15)


@pytest.mark.parametrize("run", [run for run in RUNS if run.memory], ids=str)
def test_published_memory_is_met_within_10_percent(run) -> None:
    assert PLANNED[run][1] == pytest.approx(run.memory, rel=0.10)


def test_nothing_is_fitted_one_by_one() -> None:
    """No run has a number of its own: the errors lie on both sides, and one number moved moves them all."""
    errors = [PLANNED[run][0] / run.tokens_per_second - 1 for run in RUNS]
    assert min(errors) < -0.03 < 0.03 < max(errors)
    assert abs(sum(errors) / len(errors)) < 0.04


def test_a_flat_share_of_the_peak_would_not_meet_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: half of the peak for everything, which plans assumed before."""
    monkeypatch.setattr(rates.Rates, "product", lambda self, flops, inner: flops / (0.5 * self.device.peak))
    monkeypatch.setattr(rates.Rates, "move", lambda self, count: 0.0)
    monkeypatch.setattr(
        rates.Rates,
        "attention",
        lambda self, flops, backward: (2 if backward else 1) * flops / (0.5 * self.device.peak),
    )
    off = [run for run in RUNS if abs(planned(run)[0] / run.tokens_per_second - 1) > 0.15]
    assert len(off) >= 5


def test_a_ring_across_nodes_uses_every_adapter() -> None:
    device = find_device("h100")
    assert device is not None
    one = rates.Rates(device)
    assert one.wire(8, 8, 50e9) == pytest.approx(0.75 * 450e9)
    assert one.wire(64, 8, 50e9) == pytest.approx(min(0.75 * 450e9, 8 * 0.85 * 50e9))
    assert one.wire(8, 8, 50e9, apart=8) == pytest.approx(0.85 * 50e9)  # one member a node: tensor parallelism of 8
    assert one.wire(8, 8, 50e9, apart=2) == pytest.approx(4 * 0.85 * 50e9)
    bare = rates.Rates(replace(device, link=0.0))
    assert bare.wire(8, 8, 50e9) == pytest.approx(0.85 * 50e9)
