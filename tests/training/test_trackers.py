"""Trackers beside metrics.jsonl: what Weights & Biases keeps offline is read back from its own files."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_lst.config.schema import Config, WandbConfig
from megatron_lst.errors import UserError
from megatron_lst.training import trainer
from megatron_lst.training.metrics import open_metrics, read_metrics
from megatron_lst.training.resilience.events import read_events
from megatron_lst.training.trackers import Trackers, require_trackers


def offline(config: Config, **changes: Any) -> Config:
    wandb = WandbConfig(project="speech", mode="offline", **changes)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, wandb=wandb))


def records(run: Path) -> list[Any]:
    """All records that wandb wrote into a run folder, start by start."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        store = DataStore()
        store.open_for_scan(str(path))
        while (content := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            found.append(record)
    return found


def history(run: Path) -> list[tuple[int, dict[str, str]]]:
    """(step, JSON by tag) of each line of history."""
    lines = []
    for record in records(run):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            lines.append((int(items.pop("_step", record.history.step.num)), items))
    return lines


def test_a_run_is_at_weights_and_biases_as_in_its_metrics(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, over a start that was killed past its checkpoint: one run, each step once, configuration, held-out
    losses, sound."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    config = tiny(training__steps=6, checkpoint__every=2, checkpoint__asynchronous=False, evaluation__every=2)
    validation = (dataclasses.replace(config.data.sources[1], name="words"),)
    config = offline(dataclasses.replace(config, data=dataclasses.replace(config.data, validation=validation)))
    run = Path(config.run.dir)
    (run / "samples").mkdir(parents=True)
    soundfile.write(run / "samples" / "said.wav", np.zeros(800, np.float32), 16000)
    (run / "samples" / "said.txt").write_text("what was said")

    class Killed(BaseException):
        pass

    def build(*arguments: Any, **options: Any) -> Any:
        engine = trainer.build_engine(*arguments, **options)
        step, calls = engine.step, []

        def until_the_sixth(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 6:
                raise Killed
            return step(*arguments, **options)

        engine.step = until_the_sixth
        return engine

    with pytest.raises(Killed):
        trainer.train(config, build)
    assert [r["step"] for r in read_metrics(run)] == [1, 2, 3, 4, 5]
    trainer.train(config)
    assert [r["step"] for r in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    lines = [(step, items) for step, items in history(run) if "loss/all" in items]
    assert [step for step, _ in lines] == [1, 2, 3, 4, 5, 6]
    for (_, items), record in zip(lines, read_metrics(run), strict=True):
        assert float(items["loss/all"]) == pytest.approx(record["loss"], rel=1e-6)
    assert [step for step, items in lines if "heldout/words_loss" in items] == [2, 4, 6]
    captions = [json.loads(items[key]) for _, items in history(run) for key in items if key == "samples/said/caption"]
    assert captions == ["what was said"]  # once, by the first start
    assert len(list(run.glob("wandb/offline-run-*/files/media/audio/samples/said_2_*.wav"))) == 1
    begun = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"]
    assert len({one.run_id for one in begun}) == 1 and begun[0].project == "speech"
    configured = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert configured["model"]["hidden"] == 32 and configured["training"]["steps"] == 6
    assert not [event for event in read_events(run / "events.log") if "fails" in event.message]


def test_a_tracker_that_fails_is_told_of_once_and_ends_nothing(tmp_path: Path) -> None:
    class Failing:
        name, calls = "the wall", 0

        def scalars(self, step: int, values: Any) -> None:
            self.calls += 1
            raise RuntimeError("no paper")

        def sample(self, *_: Any) -> None: ...
        def close(self, failed: bool) -> None: ...

    class Good(Failing):
        def scalars(self, step: int, values: Any) -> None:
            self.calls += 1

    def broken() -> Any:
        raise OSError("no network")

    told: list[str] = []
    failing, good = Failing(), Good()
    trackers = Trackers(tmp_path, [broken, lambda: failing, lambda: good], told.append)
    for step in (1, 2, 3):
        trackers.scalars(step, {"loss": 1.0})
    trackers.close()
    assert (failing.calls, good.calls) == (1, 3)
    assert len(told) == 2 and "OSError: no network" in told[0] and "the wall fails (RuntimeError: no paper)" in told[1]


def test_a_start_that_cannot_reach_it_goes_on(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: Any) -> None:
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", refuse)
    config = offline(tiny())
    told: list[str] = []
    Path(config.run.dir).mkdir()
    with open_metrics(config, 0, "", told.append) as writer:
        writer.write({"step": 1, "loss": 1.0})
    assert read_metrics(Path(config.run.dir)) == [{"step": 1, "loss": 1.0}]
    assert len(told) == 1 and "no route to host" in told[0]


def test_without_the_library_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    require_trackers(WandbConfig())
    monkeypatch.setitem(sys.modules, "wandb", None)
    require_trackers(WandbConfig())
    with pytest.raises(UserError, match="wandb is not installed: pip install 'megatron-lst\\[wandb\\]'"):
        require_trackers(WandbConfig(project="speech"))
