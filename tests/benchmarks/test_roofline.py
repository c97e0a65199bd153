"""The roofline counts what the FLOPs counter counts; nothing is faster than its device, nor expected to be."""

from pathlib import Path

import pytest

from benchmarks import roofline
from benchmarks.rows import synthetic_rows
from megatron_lst.config.load import load_config
from megatron_lst.flops import parameters
from megatron_lst.flops.counter import TRAINING_FACTOR, forward_flops
from megatron_lst.flops.work import row_work
from megatron_lst.planning.devices import find_device

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["lst-1b", "base-1b"])
def test_products_and_attention_are_those_of_the_counter(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml", ["training.micro_batch=1"])
    device = find_device("h200")
    assert device is not None
    found, sent = roofline.shares(config, device, 1500)
    work = row_work(config, next(synthetic_rows(config, 1500)))
    useful = TRAINING_FACTOR * forward_flops(config, work)
    # Attention computes its scores again: 4 and 10 FLOPs a pair instead of 4 and 8.
    extra = found["attention"].flops * 2 / 14
    counted = found["matrix products"].flops + found["attention"].flops
    assert counted == pytest.approx(useful + extra, rel=0.02)
    for share in found.values():
        passing, computing = share.bytes / device.bandwidth, share.flops / device.peak
        assert 0.999 * computing <= share.seconds <= 1.001 * (passing + computing)
        assert share.expected > share.seconds or not share.calls
    assert "not measurements" in roofline.report(config, device, found, sent)
    assert not sent.calls


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "configs" / "base-420m.yaml")
    assert roofline.main([path, "--micro-batch", "1", "--device", "a100"]) == 0
    assert "| matrix products |" in capsys.readouterr().out
    assert roofline.main([path, "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err


def test_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """Each stage does its part of the whole step's products, and sends."""
    device = find_device("h200")
    assert device is not None
    halves = ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2", "training.micro_batch=1"]
    config = load_config(ROOT / "configs" / "base-1b.yaml", halves)
    alone = load_config(ROOT / "configs" / "base-1b.yaml", ["training.micro_batch=1"])
    whole = roofline.shares(alone, device, 1500)[0]["matrix products"].flops
    stages = [roofline.shares(config, device, 1500, stage) for stage in range(2)]
    assert sum(found["matrix products"].flops for found, _ in stages) * 2 == pytest.approx(whole)
    assert all(sent.calls and sent.bytes > 1e6 and sent.seconds > 1e-6 for _, sent in stages)
    path = str(ROOT / "configs" / "base-1b.yaml")
    assert roofline.main([path, "--stage", "1", "--set", *halves]) == 0
    assert "on the wires" in capsys.readouterr().out
    assert roofline.main([path, "--stage", "2", "--set", *halves]) == 2


def test_the_update_counts_as_the_product_runs_it() -> None:
    """By `lst_kernels` no gradient is written back and no other pass copies weights: 8 bytes a parameter less."""
    device = find_device("h100")
    assert device is not None
    found = {}
    for name in ("auto", "torch"):
        given = ["training.micro_batch=1", f"engine.optimizer={name}"]
        config = load_config(ROOT / "configs" / "base-420m.yaml", given)
        found[name] = roofline.shares(config, device, 1500)[0][roofline.UPDATE]
    saved = found["torch"].executed - found["auto"].executed
    assert saved == pytest.approx(8 * parameters(config), rel=0.01)
    assert found["auto"].launches < found["torch"].launches
