"""A run that goes on: longer, from before its decay, with damaged hints; and which checkpoints it keeps meanwhile."""

import dataclasses
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from megatron_lst.config.schema import Config
from megatron_lst.training import trainer
from megatron_lst.training.checkpoint import complete_checkpoints
from megatron_lst.training.metrics import read_metrics
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.events import read_events
from tests.training.test_train import with_signal

SAME = ("step", "loss", "loss_speech", "loss_text", "grad_norm", "lr", "batch_hash", "tokens", "raw_tokens")


def curve(config: Config) -> list[dict[str, Any]]:
    return [{key: record[key] for key in SAME} for record in read_metrics(Path(config.run.dir))]


def kinds(config: Config) -> list[str]:
    return [event.kind for event in read_events(Path(config.run.dir) / "events.log")]


def extend(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def test_extending_a_finished_cosine_tells_both_rates_and_a_constant_one_does_not(tiny) -> None:
    for schedule, told in (("cosine", True), ("constant", False)):
        config = tiny(schedule, training__steps=4, training__schedule=schedule)
        trainer.train(config)
        trainer.train(extend(config, 6))
        records = read_metrics(Path(config.run.dir))
        said = [e.message for e in read_events(Path(config.run.dir) / "events.log") if e.kind == "schedule"]
        assert (records[4]["lr"] > records[3]["lr"]) == told
        assert len(said) == told
        if told:
            assert f"from {records[3]['lr']:.4g} in step 4 to {records[4]['lr']:.4g} in step 5" in said[0]
            assert "training.steps from 4 to 6" in said[0]


def test_the_old_number_of_steps_again_trains_nothing_and_rewrites_nothing(tiny) -> None:
    config = tiny(training__steps=2)
    trainer.train(config)
    trainer.train(extend(config, 4))
    folder = Path(config.run.dir)
    before = (folder / "config.yaml").read_text()
    assert "  steps: 4\n" in before
    assert trainer.train(config) == trainer.Outcome(4, None)
    assert (folder / "config.yaml").read_text() == before
    assert "4 steps are done, and training.steps=2: nothing to train" in (folder / "events.log").read_text()
    assert len(read_metrics(folder)) == 4
    assert trainer.train(extend(config, 5)).step == 5
    assert "  steps: 5\n" in (folder / "config.yaml").read_text()  # the control


def test_a_longer_run_goes_on_from_before_the_decay_as_if_it_had_been_planned(tiny) -> None:
    wsd = {"training__schedule": "wsd", "training__decay_steps": 2, "training__warmup_steps": 1}
    wsd |= {"patching__tau1": 8, "patching__tau2": 24}  # a run keeps the curriculum of its first start
    planned = tiny("planned", training__steps=8, checkpoint__keep=1, **wsd)
    trainer.train(planned)
    first = tiny("first", training__steps=5, checkpoint__keep=1, checkpoint__every=100, **wsd)
    trainer.train(first)
    folder = Path(first.run.dir)
    assert [r["lr_phase"] for r in read_metrics(folder)] == ["warmup", "stable", "stable", "decay", "decay"]
    assert [(c.step, c.kept) for c in complete_checkpoints(folder)] == [(3, True), (5, False)]
    longer = tiny("longer", training__steps=8, checkpoint__keep=1, **wsd)
    (Path(longer.run.dir) / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "config.yaml", longer.run.dir)
    kept = folder / "checkpoints" / "step-00000003"
    shutil.copytree(kept, Path(longer.run.dir) / "checkpoints" / kept.name)
    trainer.train(longer)
    assert curve(longer) == curve(planned)[3:]
    said = [e.message for e in read_events(Path(longer.run.dir) / "events.log") if e.kind == "schedule"]
    assert len(said) == 1
    assert "from 0.01 in step 3 to 0.01 in step 4 (training.steps from 5 to 8)" in said[0]


def test_damaged_hints_and_half_lines_do_not_stop_a_resume(tiny) -> None:
    config = tiny(training__steps=3)
    trainer.train(config)
    folder = Path(config.run.dir)
    (folder / "checkpoints" / "latest").write_bytes(b"\xff\xfe\x00garbage")
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'\x00\x00{"step": 4, "lo\xff\n5\n{"st')
    with open(folder / "events.log", "ab") as file:
        file.write(b"2026-01-01T00:0\xff")
    (folder / "STOPPED.json").write_bytes(b"\xff{")
    assert trainer.train(extend(config, 5)).step == 5
    assert [r["step"] for r in read_metrics(folder)] == [1, 2, 3, 4, 5]
    assert kinds(config).count("stop") == 2
    assert kinds(config).count("resume") == 2  # the hint, and from where


@pytest.mark.parametrize("received", [None, signal.SIGTERM])
def test_a_full_disk_at_the_end_costs_the_note_of_it_alone(tiny, received: signal.Signals | None) -> None:
    config = tiny(training__steps=3)
    folder = Path(config.run.dir)
    folder.mkdir()

    def fill_disk() -> None:
        """What STOPPED.json is written into, before it gets its name, has no room."""
        name = f".{outcome.NAME}.{socket.gethostname()}.{threading.get_native_id()}.tmp"
        (folder / name).symlink_to("/dev/full")

    fill_disk()
    stopped = trainer.train(config) if received is None else trainer.train(config, with_signal(2, received))
    step = 3 if received is None else 2
    assert stopped == trainer.Outcome(step, received)
    assert outcome.read(folder) is None
    said = [e.message for e in read_events(folder / "events.log") if e.kind == "stop"]
    assert "STOPPED.json could not be written" in said[0]
    assert "No space left on device" in said[0]
    assert said[1:] == ["all steps are done" if received is None else "saved after SIGTERM"]
    assert complete_checkpoints(folder)[-1].step == step
    assert not complete_checkpoints(folder)[-1].damaged_files()

    fill_disk()  # control: this disk is full, and only the trainer forgives it
    with pytest.raises(OSError, match="No space left"):
        outcome.finished(folder, step)
    trainer.train(extend(config, 4))
    assert (outcome.read(folder) or {})["state"] == "finished"
    assert [r["step"] for r in read_metrics(folder)] == [1, 2, 3, 4]


def test_the_checkpoint_with_the_least_held_out_loss_stays(tiny) -> None:
    measured = {"evaluation__every": 1, "checkpoint__every": 1, "checkpoint__keep": 1, "checkpoint__keep_best": True}
    config = tiny(training__steps=6, training__lr=1.0, training__schedule="constant", **measured)  # a loss that rises
    held_out = [dataclasses.replace(s, shards=(f"{s.shards[0]}/",)) for s in config.data.sources]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation=held_out))
    trainer.train(config)
    folder = Path(config.run.dir)
    names = [f"heldout_{source.name}_loss" for source in config.data.validation]
    losses = {r["step"]: sum(r[name] for name in names) / len(names) for r in read_metrics(folder)}
    best = min(losses, key=losses.__getitem__)
    assert best < 6, "the last one is not the best: it would stay anyway"
    found = complete_checkpoints(folder)
    assert [c.step for c in found] == [best, 6]
    assert found[0].heldout_loss() == pytest.approx(losses[best])
    removed = [e.message for e in read_events(folder / "events.log") if "removed: checkpoint.keep=1" in e.message]
    assert len(removed) == 4
