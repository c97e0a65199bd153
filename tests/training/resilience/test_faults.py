"""Decisions about bad steps and spikes."""

import math

import numpy as np

from megatron_lst.training.resilience.faults import BadSteps, SpikeDetector


def test_bad_steps_stop_after_so_many_in_a_row():
    bad = BadSteps(3)
    assert [bad.observe(s) for s in (True, True, False, True, True, True)] == [False] * 5 + [True]
    assert bad.total == 5
    assert "3 times in a row" in str(bad.fault(6, "faults/"))
    assert bad.fault(6, "x").exit_code == 4


def test_a_restart_does_not_forget_a_bad_stretch():
    bad = BadSteps(3)
    bad.observe(True)
    bad.observe(True)
    again = BadSteps(3)
    again.restore(bad.state())
    assert again.observe(True)


def noisy(steps: int, seed: int = 0) -> np.ndarray:
    return 5 * np.exp(-np.arange(steps) / 2000) + np.random.default_rng(seed).normal(0, 0.05, steps)


def test_a_spike_is_found_and_noise_is_not():
    losses = noisy(4000)
    detector = SpikeDetector(128, 8.0)
    assert [s for i, x in enumerate(losses) if (s := detector.observe(i, x))] == []
    losses[2000] += 2.0
    detector = SpikeDetector(128, 8.0)
    (spike,) = [s for i, x in enumerate(losses) if (s := detector.observe(i, x))]
    assert spike.step == 2000
    assert spike.score > 20
    assert not spike.roll_back


def test_a_new_level_stops_being_a_spike():
    losses = np.concatenate([noisy(500), noisy(500) + 3])
    detector = SpikeDetector(64, 8.0)
    spikes = [s.step for i, x in enumerate(losses) if (s := detector.observe(i, x))]
    assert spikes == list(range(500, 533))


def test_rollbacks_are_limited_and_once_a_spike():
    losses = noisy(900)
    for at in (200, 201, 400, 600):
        losses[at] += 3
    detector = SpikeDetector(64, 8.0, max_rollbacks=2)
    advised = [s.step for i, x in enumerate(losses) if (s := detector.observe(i, x)) and s.roll_back]
    assert advised == [200, 400]


def test_a_resumed_run_has_used_its_rollbacks():
    detector = SpikeDetector(32, 8.0, max_rollbacks=1)
    for i, x in enumerate(noisy(100)):
        detector.observe(i, x)
    before = detector.state()
    assert detector.observe(100, 50.0).roll_back
    assert not detector.observe(101, 50.0).roll_back
    for state, advised in ((detector.state() | {"outside": 0}, False), (before, True)):
        resumed = SpikeDetector(32, 8.0, max_rollbacks=1)
        resumed.restore(state)
        assert resumed.observe(102, 50.0).roll_back is advised


def test_losses_that_are_not_finite_are_not_spikes():
    detector = SpikeDetector(32, 8.0)
    for i in range(64):
        detector.observe(i, 2.0)
    assert detector.observe(64, math.nan) is None
    assert detector.observe(65, math.inf) is None
    assert detector.observe(66, 2.5)


def test_zero_switches_it_off():
    detector = SpikeDetector(32, 0)
    assert all(detector.observe(i, x) is None for i, x in enumerate([2.0] * 50 + [100.0]))
