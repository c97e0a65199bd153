"""metrics.jsonl holds each step once, whatever happened before."""

import json
from pathlib import Path

import pytest

from megatron_lst.training.metrics import MetricsWriter, read_metrics
from megatron_lst.training.trackers import TensorBoard, Trackers, tag_of


def write(run: Path, after: int, steps: range, loss: float = 1.0) -> None:
    writer = MetricsWriter(run, after)
    for step in steps:
        writer.write({"step": step, "loss": loss})
    writer.close()


def test_a_resumed_run_drops_the_lines_past_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 8), loss=1.0)
    write(tmp_path, 5, range(6, 9), loss=2.0)
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == list(range(1, 9))
    assert [r["loss"] for r in records] == [1.0] * 5 + [2.0] * 3


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    write(tmp_path, 3, range(4, 5))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None}]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x00" * 8,
        b'{"step": 4, "lo\xff\n',
        b"\xff\xfe\n",
        b"5\n",
        b"null\n",
        b'["step"]\n',
        b'{"loss": 1}\n',
        b'{"step": "4"}\n',
    ],
)
def test_damaged_lines_stop_nothing(tmp_path: Path, rubbish: bytes) -> None:
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + rubbish)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    write(tmp_path, 3, range(4, 6))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_full_disk_delays_lines_and_ends_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    writer = MetricsWriter(tmp_path, 0, told.append)
    writer.write({"step": 1})
    good, full = writer._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    writer._file = full
    for step in (2, 3):
        writer.write({"step": step})
    assert len(told) == 1
    assert "No space left" in told[0]
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    writer._file = good
    writer.write({"step": 4})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert "has all steps again" in told[1]
    writer._file = full
    writer.write({"step": 5})
    writer.close()
    assert "lacks 1 lines" in told[-1]
    good.close()


def test_tensorboard_has_the_fields_in_groups_and_the_configuration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = {"loss": 2.0, "loss_speech": 3.0, "lr": 0.1, "grad_norm": 1.0, "seconds": 0.5, "units": 8, "mfu": None}
    record |= {"batch_hash": "ab", "skipped": False, "raw_tokens": {"talks": 9}}
    held_out = {"heldout_talks_loss": 2.5, "heldout_choice_S->S": 0.5}
    board = Trackers(tmp_path, [lambda: TensorBoard(tmp_path, 0, "model:\n  hidden: 32\n")])
    with MetricsWriter(tmp_path, 0, trackers=board) as writer:
        writer.write({"step": 1, **record})
        writer.write({"step": 2, **record, **held_out})
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    board.Reload()
    assert set(board.Tags()["scalars"]) == {
        "loss/all", "loss/speech", "optimizer/lr", "optimizer/grad_norm", "speed/seconds", "data/units",
        "data/raw_tokens/talks", "heldout/talks_loss", "heldout/choice_S_to_S",
    }  # fmt: skip
    assert [(e.step, e.value) for e in board.Scalars("loss/speech")] == [(1, 3.0), (2, 3.0)]
    assert [(e.step, e.value) for e in board.Scalars("heldout/talks_loss")] == [(2, 2.5)]
    (text,) = board.Tensors("configuration/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    model:\n      hidden: 32\n"


@pytest.mark.parametrize(
    ("field", "tag"),
    [("mfu", "speed/mfu"), ("loss_marker", "loss/marker"), ("rows", "data/rows")],
)
def test_tags(field: str, tag: str) -> None:
    assert tag_of(field) == tag
