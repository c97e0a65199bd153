"""The trainer on the real engine, in this process: it resumes exactly, stops on signals, refuses other runs."""

import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.config.load import dump_yaml
from megatron_lst.config.schema import Config
from megatron_lst.data import RowStream
from megatron_lst.engines import build_engine
from megatron_lst.engines.microbatches import PackedStep
from megatron_lst.errors import DamagedDataError, LstError, TrainingFault, UserError
from megatron_lst.inference import write_export
from megatron_lst.patching.row import batch_hash
from megatron_lst.patching.serialisation import load_rows
from megatron_lst.reference import ReferenceModel
from megatron_lst.training import trainer
from megatron_lst.training.checkpoint import complete_checkpoints
from megatron_lst.training.metrics import read_metrics
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.events import read_events
from tests.data.toy import on_disk
from tests.support.ranks import RankPool
from tests.support.single import engine_of

SAME = ("step", "loss", "loss_speech", "loss_text", "grad_norm", "lr", "batch_hash", "tokens", "raw_tokens")


def curve(config: Config) -> list[dict[str, Any]]:
    return [{key: record[key] for key in SAME} for record in read_metrics(Path(config.run.dir))]


def kinds(config: Config) -> list[str]:
    return [event.kind for event in read_events(Path(config.run.dir) / "events.log")]


def extend(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def watched(before_step: Callable[[Any, PackedStep], None]) -> Callable[..., Any]:
    """Builds the real engine; `before_step(engine, packed)` is called before each of its steps."""

    def build(settings: Config, **options: Any) -> Any:
        engine = build_engine(settings, **options)
        step = engine.step

        def watched_step(packed: PackedStep, lr: float, **options: Any) -> Any:
            before_step(engine, packed)
            return step(packed, lr, **options)

        engine.step = watched_step  # type: ignore[method-assign]
        return engine

    return build


def with_signal(step: int, number: signal.Signals) -> Callable[..., Any]:
    """Builds an engine in whose step number `step` this process gets a signal."""
    numbers = itertools.count(1)

    def kill(engine: Any, packed: PackedStep) -> None:
        if next(numbers) == step:
            os.kill(os.getpid(), number)

    return watched(kill)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tiny, asynchronous: bool) -> None:
    whole = tiny("whole", training__steps=8, checkpoint__asynchronous=asynchronous)
    assert trainer.train(whole) == trainer.Outcome(8, None)
    records = read_metrics(Path(whole.run.dir))
    assert [r["step"] for r in records] == list(range(1, 9))
    assert records[-1]["loss"] < records[0]["loss"] - 0.1

    stopped = tiny("stopped", training__steps=8, checkpoint__asynchronous=asynchronous, checkpoint__every=2)
    assert trainer.train(stopped, with_signal(3, signal.SIGTERM)) == trainer.Outcome(3, signal.SIGTERM)
    assert [c.step for c in complete_checkpoints(Path(stopped.run.dir))] == [2, 3]
    said = outcome.read(stopped.run.dir)
    assert said is not None
    assert (said["state"], said["next"]) == ("saved", "stop")
    assert len(curve(stopped)) == 3
    assert trainer.train(stopped) == trainer.Outcome(8, None)
    assert curve(stopped) == curve(whole)
    assert "resume" in kinds(stopped)
    assert all(not c.damaged_files() for c in complete_checkpoints(Path(stopped.run.dir)))


def test_the_batches_are_those_of_the_stream_alone(tiny) -> None:
    config = tiny(training__steps=3)
    trainer.train(config)
    stream = RowStream(trainer.settle_config(config), 0, 1)
    expected = [batch_hash([row.hash for row in next(stream).rows]) for _ in range(3)]
    assert [r["batch_hash"] for r in read_metrics(Path(config.run.dir))] == expected


def test_lines_past_the_checkpoint_are_written_again_not_twice(tiny) -> None:
    whole = tiny("whole", training__steps=6)
    trainer.train(whole)
    crashed = tiny("crashed", training__steps=6, checkpoint__every=4)
    trainer.train(crashed)
    newest = complete_checkpoints(Path(crashed.run.dir))[-1]  # as if a crash had come before the last checkpoint
    (newest.path / "manifest.json").unlink()
    trainer.train(crashed)
    assert curve(crashed) == curve(whole)


def test_another_configuration_in_the_same_folder_is_refused(tiny) -> None:
    config = tiny(training__steps=2)
    trainer.train(config)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, lr=0.5))
    with pytest.raises(UserError, match=r"training\.lr: 0\.01 in the run, 0\.5 now"):
        trainer.train(other)
    assert trainer.train(extend(config, 3)).step == 3


def test_a_first_start_that_failed_does_not_bind_the_corrected_one(tiny) -> None:
    """Nor does one that ended after config.yaml had been written, and before the first step."""
    config = tiny(training__steps=2)
    with pytest.raises(UserError, match="there are none"):
        trainer.train(dataclasses.replace(config, data=dataclasses.replace(config.data, sources=[])))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, seed=5))
    Path(config.run.dir).mkdir(parents=True, exist_ok=True)
    (Path(config.run.dir) / "config.yaml").write_text(dump_yaml(other))
    assert trainer.train(config).step == 2


def test_a_run_folder_that_is_a_file_is_named(tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^run\.dir: cannot write .*file: File exists$"):
        trainer.train(tiny("file"))


def test_a_finished_run_is_left_as_it_is(tiny) -> None:
    config = tiny(training__steps=2)
    trainer.train(config)
    before = curve(config)
    assert trainer.train(config) == trainer.Outcome(2, None)
    assert curve(config) == before


def _train_poisoned(config: Config, steps: set[int]) -> str:
    """Train while one rank's embeddings come out as NaN in some steps; how it ended."""
    numbers = itertools.count(1)

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        return output * float("nan")

    def poison(engine: Any, packed: PackedStep) -> None:
        engine.hook.remove()
        if next(numbers) in steps and engine.data_rank == 1:
            engine.hook = engine.chunks[0].embedding.register_forward_hook(spoil)

    def poisoned(settings: Config, **options: Any) -> Any:
        engine = watched(poison)(settings, **options)
        engine.hook = engine.chunks[0].embedding.register_forward_hook(lambda *_: None)
        return engine

    try:
        trainer.train(config, poisoned)
    except TrainingFault as error:
        return str(error)
    return ""


@pytest.mark.multiprocess
def test_one_ranks_nan_is_skipped_by_all_and_leaves_no_trace(tiny, ranks: RankPool) -> None:
    config = tiny(training__steps=6, training__max_bad_steps=3)
    assert ranks.run(_train_poisoned, 2, config, {2, 3}) == ["", ""]
    records = read_metrics(Path(config.run.dir))
    assert [record["skipped"] for record in records] == [False, True, True, False, False, False]
    assert kinds(config).count("skip") == 2
    assert all(record["loss"] < 7 for record in records if not record["skipped"])


@pytest.mark.multiprocess
def test_steps_that_are_not_finite_stop_the_run_with_their_batch_saved(tiny, ranks: RankPool) -> None:
    config = tiny(training__steps=9, training__max_bad_steps=3)
    said = ranks.run(_train_poisoned, 2, config, set(range(4, 10)))
    assert all("3 times in a row" in text for text in said)
    assert kinds(config).count("skip") == 3
    saved = sorted(Path(config.run.dir).glob("logs/bad-step-00000006/rows-*.npz"))
    indices = sorted(row.index for path in saved for row in load_rows(path))
    size = config.training.global_batch
    assert indices == list(range(5 * size, 6 * size)), "the whole global batch of step 6"
    ended = outcome.read(config.run.dir)
    assert ended is not None
    assert (ended["state"], ended["exit_code"]) == ("failed", 4)


def test_a_disk_without_room_costs_the_checkpoint_not_the_run(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(training__steps=8, checkpoint__every=2, checkpoint__asynchronous=False, checkpoint__retries=0)
    mkdir, tried = Path.mkdir, []

    def full_once(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "engine" and options.get("parents"):
            tried.append(int(re.sub(r"\D", "", self.parent.name)))
            if tried[-1] == 4:
                raise OSError(28, "No space left on device")
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full_once)
    trainer.train(config)
    assert list(dict.fromkeys(tried)) == [2, 4, 6, 8]
    assert "checkpoint_failed" in kinds(config)
    assert [c.step for c in complete_checkpoints(Path(config.run.dir))] == [2, 6, 8]


def test_held_out_measures_stand_in_the_records_of_their_steps(tiny) -> None:
    config = tiny(training__steps=5, evaluation__every=2, evaluation__rows=3, evaluation__items=4)
    held_out = dataclasses.replace(config.data, validation=config.data.sources)
    choices = dataclasses.replace(config.evaluation, directions=("S->S", "T->T"))
    trainer.train(dataclasses.replace(config, data=held_out, evaluation=choices))
    records = read_metrics(Path(config.run.dir))
    measured = [r["step"] for r in records if "heldout_speech_loss" in r]
    assert measured == [2, 4, 5]
    last = records[-1]
    assert last["heldout_text_loss_speech"] is None
    assert 0 < last["heldout_text_loss_text"] < records[0]["loss"] + 1
    assert 0 <= last["heldout_choice_S->S"] <= 1


def _train_and_count(config: Config) -> list[int]:
    """Train; the tokens that this rank's engine was given in each step."""
    counts: list[int] = []
    trainer.train(
        config, watched(lambda engine, packed: counts.append(sum(sum(batch.lengths) for batch in packed.batches)))
    )
    return counts


@pytest.mark.multiprocess
def test_data_parallel_ranks_exchange_rows_and_share_the_curve(tiny, ranks: RankPool) -> None:
    """Through the whole trainer: streams, balancing, engine, record."""
    alone = tiny("alone", training__steps=6, training__global_batch=8)
    trainer.train(alone)
    together = tiny("together", training__steps=6, training__global_batch=8)
    trained = np.array(ranks.run(_train_and_count, 2, together))
    for one, other in zip(curve(alone), curve(together), strict=True):
        for key in SAME:
            assert other[key] == (pytest.approx(one[key], rel=1e-5) if isinstance(one[key], float) else one[key]), key
    assert "(data=2)" in (Path(together.run.dir) / "events.log").read_text()
    streams = [RowStream(together, rank, 2) for rank in range(2)]
    built = np.array([[sum(len(row.tokens) for row in next(stream).rows) for _ in range(6)] for stream in streams])
    assert trained.sum(0).tolist() == built.sum(0).tolist()
    assert (np.ptp(trained, axis=0) <= np.ptp(built, axis=0)).all()
    assert np.ptp(trained, axis=0).sum() < 0.5 * np.ptp(built, axis=0).sum(), "ranks are given rows by their tokens"


@pytest.mark.multiprocess
def test_ranks_of_a_share_train_on_rows_that_one_of_them_built(tiny, ranks: RankPool) -> None:
    """Two shares of two tensor-parallel ranks, then one process from where they stopped: the curve of one process."""
    # Neither the rate nor the patches of a step depend on how many steps there are.
    settled = {"training__schedule": "constant", "patching__strategy": "mixed"}
    alone = tiny("alone", training__steps=6, **settled)
    trainer.train(alone)
    together = tiny("together", training__steps=3, parallel__tensor=2, **settled)
    ranks.run(trainer.train, 4, together)
    trainer.train(dataclasses.replace(extend(together, 6), parallel=alone.parallel))
    for one, other in zip(curve(alone), curve(together), strict=True):
        for key in SAME:
            assert other[key] == (pytest.approx(one[key], rel=1e-5) if isinstance(one[key], float) else one[key]), key
    events = (Path(together.run.dir) / "events.log").read_text()
    assert "2 of 4 ranks build rows" in events and "1 of 1 ranks build rows" in events


def _flip_two_bytes(run: Path) -> str:
    """Damage the largest file of the newest checkpoint without changing its size; its name in the checkpoint."""
    newest = complete_checkpoints(run)[-1].path
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    for at in (len(content) // 3, len(content) // 2):
        content[at] ^= 1
    file.write_bytes(content)
    return str(file.relative_to(newest))


def _exit_code(config: Config) -> int:
    try:
        trainer.train(config)
    except LstError as error:
        return error.exit_code
    return 0


@pytest.mark.multiprocess
def test_flipped_bytes_in_a_checkpoint_stop_all_ranks_and_nothing_is_lost(tiny, ranks: RankPool) -> None:
    config = tiny(training__steps=6, checkpoint__every=2)
    run = Path(config.run.dir)
    assert ranks.run(_exit_code, 2, config) == [0, 0]
    name = _flip_two_bytes(run)
    kept = [*run.rglob("checkpoints/**/*"), run / "metrics.jsonl", run / "config.yaml"]
    before = {path: path.read_bytes() for path in kept if path.is_file()}
    whole = curve(config)
    assert ranks.run(_exit_code, 2, config) == [3, 3]
    assert {path: path.read_bytes() for path in kept if path.is_file()} == before
    ended = outcome.read(run)
    assert ended is not None
    for word in (f"{name}: hash differs", "go on from step-00000004", "step-00000006"):
        assert word in ended["error"]
    told = [event.message for event in read_events(run / "events.log") if event.kind == "damaged"]
    assert len(told) == 1
    assert name in told[0]
    complete_checkpoints(run)[-1].path.rename(run / "step-00000006-damaged")
    assert ranks.run(_exit_code, 2, config) == [0, 0]
    assert curve(config) == whole


def test_sizes_alone_do_not_see_flipped_bytes(tiny) -> None:
    """The control of the test above, and what `checkpoint.verify: sizes` gives up."""
    config = tiny(training__steps=2, checkpoint__verify="sizes")
    trainer.train(config)
    _flip_two_bytes(Path(config.run.dir))
    assert trainer.train(extend(config, 3)).step == 3
    file = complete_checkpoints(Path(config.run.dir))[-1].engine_folder / "common.pt"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedDataError, match=r"common\.pt: \d+ bytes"):
        trainer.train(extend(config, 4))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_shard_that_is_not_whole_is_found_before_the_first_step(
    tiny, shard_sets: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    copies = {name: shutil.copytree(folder, tmp_path / "sets" / name) for name, folder in shard_sets.items()}
    config = on_disk(tiny(training__steps=2), copies)
    shard = max(copies["text"].rglob("*.mds*"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedDataError, match=f"{re.escape(str(shard))}: .*{damage}"):
        trainer.train(config)
    assert read_metrics(Path(config.run.dir)) == []


def test_a_warm_started_run_freezes_by_its_steps_alone(tiny, tmp_path: Path) -> None:
    """Stopped within the freeze and going on, it has the weights and the curve of a run that never stopped."""
    base = tiny("export")
    weights = ReferenceModel(base.model, base.vocabulary, seed=5).state_dict()
    export = write_export(tmp_path / "warm", weights, base)
    changes = {
        "training__steps": 4, "training__init_from": str(export), "training__freeze_global_steps": 2,
        "checkpoint__every": 1, "checkpoint__keep": 0,
    }  # fmt: skip
    whole = tiny("whole", **changes)
    trainer.train(whole)
    stopped = tiny("stopped", **changes)
    trainer.train(stopped, with_signal(1, signal.SIGTERM))
    trainer.train(stopped)
    assert curve(stopped) == curve(whole)
    for config in (whole, stopped):
        still = []
        for checkpoint in complete_checkpoints(Path(config.run.dir)):
            with engine_of(config) as engine:
                engine.load(checkpoint.engine_folder)
                now = engine.export_weights()
            assert not torch.equal(now["decoder.head.weight"], weights["decoder.head.weight"])
            names = [name for name in now if name.startswith("global_transformer.")]
            still.append(all(torch.equal(now[name], weights[name]) for name in names))
        assert still == [True, True, False, False]


def test_only_a_fresh_start_draws_weights(tiny, tmp_path: Path) -> None:
    """What the engine has drawn when the first step begins, as its description in events.log says."""
    config = tiny("run", training__steps=1, training__seed=5)
    trainer.train(config)
    trainer.train(extend(config, 2))
    weights = ReferenceModel(config.model, config.vocabulary, seed=5).state_dict()
    matrices = sum(weight.numel() for weight in weights.values() if weight.dim() > 1)
    export = write_export(tmp_path / "export", weights, config)
    given = tiny("given", training__steps=1, training__seed=6, training__init_from=str(export))
    trainer.train(given)
    described = [
        [e.message for e in read_events(Path(c.run.dir) / "events.log") if e.message.startswith("weights_drawn")]
        for c in (config, given)
    ]
    assert described == [[f"weights_drawn: {matrices}", "weights_drawn: 0"], ["weights_drawn: 0"]]
    assert curve(given) == curve(config)[:1], "the oracle draws what the engine draws"


def test_a_run_says_whose_lock_it_took_over(tiny) -> None:
    first, second = tiny("first", training__steps=1), tiny("second", training__steps=1)
    code = (
        f"import os; from megatron_lst.training.resilience.lock import RunLock; RunLock({first.run.dir!r}); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120)
    for config in (first, second):
        trainer.train(config)
    events = read_events(Path(first.run.dir) / "events.log")
    assert "took over from a run that died" in next(event.message for event in events if event.kind == "lock")
    assert "lock" not in kinds(second), "control: a folder that nobody held"
