"""A step's record from sums over ranks; MFU needs a device whose peak is known."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import Config, TrainingConfig
from megatron_lst.engines.base import StepResult
from megatron_lst.errors import TrainingFault
from megatron_lst.patching.row import batch_hash
from megatron_lst.training.record import StepRecorder, job_peak
from tests.support.toy import toy_config, toy_rows


def test_no_peak_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    config, gpu = Config(), torch.device("cuda", 0)
    assert job_peak(config, torch.device("cpu"), 8) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert job_peak(config, gpu, 8) == pytest.approx(8 * 989.4e12)
    assert job_peak(replace(config, training=TrainingConfig(precision="fp32")), gpu, 8) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Accelerator 9000")
    assert job_peak(config, gpu, 8) is None


RESULT = StepResult(1.0, 1.0, 1.0, 1.0, 0.5, False, 100)


@pytest.mark.parametrize("peers", [1, 2, 8192])
def test_sums_of_all_ranks_make_the_record_of_one(peers: int) -> None:
    """Two shares of the batch, each fed by so many model-parallel peers: counts and hash are those of one process."""
    config = toy_config()
    rows = toy_rows(config, config.training.global_batch, seed=3)
    alone: Any = StepRecorder(config, SimpleNamespace(rank=0, world_size=1), 1)  # type: ignore[arg-type]
    expected = alone.record(1, 1e-3, RESULT, rows, alone.numbers(rows), 1.0)
    assert expected["batch_hash"] == batch_hash([row.hash for row in rows])
    many: Any = StepRecorder(config, SimpleNamespace(rank=0, world_size=2 * peers), 2)  # type: ignore[arg-type]
    shares = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    sums = peers * sum(many.numbers(share) for share in shares)
    for share in shares:
        found = many.record(1, 1e-3, RESULT, share, sums, 1.0)
        assert {key: found[key] for key in found if key != "raw_tokens"} == {
            key: expected[key] for key in expected if key != "raw_tokens"
        }


def test_a_peer_that_built_another_row_is_seen_by_its_peers() -> None:
    """One row of one of 32 peers; not by ranks that feed other rows, which have nothing to compare (the control)."""
    config = toy_config()
    rows = toy_rows(config, config.training.global_batch, seed=3)
    other = toy_rows(config, config.training.global_batch, seed=4)
    mine, theirs = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    recorder: Any = StepRecorder(config, SimpleNamespace(rank=5, world_size=64), 2)  # type: ignore[arg-type]
    sums = 31 * recorder.numbers(mine) + recorder.numbers([other[0], *mine[1:]]) + 32 * recorder.numbers(theirs)
    with pytest.raises(TrainingFault, match=f"rank 5 and its .* peers built different rows .row {rows[0].index}"):
        recorder.record(7, 1e-3, RESULT, mine, sums, 1.0)
    assert np.isfinite(recorder.record(7, 1e-3, RESULT, theirs, sums, 1.0)["loss"])
