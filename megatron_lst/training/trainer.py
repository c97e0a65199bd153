"""The training loop, and little else: rows in, metrics and checkpoints out. It cannot tell which engine it holds."""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_lst.config.load import dump_yaml
from megatron_lst.config.paths import absolute
from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import check_shard_sizes
from megatron_lst.engines import build_engine
from megatron_lst.engines.base import Engine, StepResult
from megatron_lst.errors import LstError, TrainingFault
from megatron_lst.files import write_text
from megatron_lst.machine import environment_number
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.patching.serialisation import save_rows
from megatron_lst.progress import Progress
from megatron_lst.terminal import unfailing_output
from megatron_lst.training.background import BackgroundWriter
from megatron_lst.training.checkpoint import Checkpoint, newest_checkpoint
from megatron_lst.training.checkpoint.saving import CheckpointSaver
from megatron_lst.training.checkpoint.verification import load_checkpoint
from megatron_lst.training.feed import RowFeed, StepBatch
from megatron_lst.training.held_out import HeldOutEvaluation
from megatron_lst.training.init_from import check_export
from megatron_lst.training.metrics import MetricsWriter, open_metrics
from megatron_lst.training.provenance import record
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.record import StepRecorder, job_peak
from megatron_lst.training.resilience import outcome
from megatron_lst.training.resilience.events import EventKind, EventLog
from megatron_lst.training.resilience.faults import BadSteps, SpikeDetector
from megatron_lst.training.resilience.lock import check as check_lock
from megatron_lst.training.resilience.signals import ORDER, StopSignals, agreed
from megatron_lst.training.resilience.stragglers import StragglerReport, probe
from megatron_lst.training.resilience.watchdog import Watchdog
from megatron_lst.training.resume import stored_training
from megatron_lst.training.schedule import change, is_frozen, last_stable_step, learning_rate
from megatron_lst.training.start import has_begun, init_distributed, lock_run_folder, settle_config
from megatron_lst.training.text_ability import TextAbility
from megatron_lst.training.trackers import require_trackers

HANG_REPORT_SECONDS = 5.0
"""How long the report of a hang waits for events.log."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    """The last step that is done and saved."""
    signal: signal.Signals | None
    """What asked the run to stop; None: all steps are done."""


def train(config: Config, build: Callable[..., Engine] = build_engine) -> Outcome:
    """Train until the last step, or until a signal asks to stop. Goes on by itself from the run folder.

    Args:
        build: makes the engine; called as `build_engine` is.

    Raises:
        UserError: an impossible layout, another run's folder, data that does not fit the model.
        DamagedDataError: shards or the checkpoint are not what was written.
        TrainingFault: training cannot go on.
        LstError: another rank failed; names it and its error.
    """
    config = settle_config(config)
    with unfailing_output(), init_distributed(config) as (ranks, layout):
        lock, generation = lock_run_folder(config, ranks)
        with lock or contextlib.nullcontext():
            run = _Run(config, ranks, layout, generation, build)
            if lock is not None and lock.took_over is not None:
                run.tell("lock", lock.took_over)
            with StopSignals() as signals, run.watchdog:
                try:
                    return run.go(signals)
                except Exception as error:
                    # Before anything is closed: that is what the other ranks notice, and they look here for the cause.
                    elsewhere = run.note_failure(error)
                    if elsewhere is not None:
                        raise elsewhere from None
                    raise
                finally:
                    run.close()


class _Run:
    """One process's part of one call of `train`."""

    def __init__(
        self, config: Config, ranks: Ranks, layout: ParallelLayout, generation: int, build: Callable[..., Engine]
    ) -> None:
        self.config, self.ranks, self.layout, self.folder = config, ranks, layout, Path(config.run.dir)
        self.step = 0
        self.build = build
        self.engine: Engine | None = None
        self.resumed: dict[str, Any] = {}  # cursors of all streams at the start of this call
        self.cursors: dict[str, Any] = {}  # of those that this rank has served since
        self.heldout_loss: tuple[int, float | None] = (0, None)  # the step of the last evaluation, and its loss
        self.writer = ranks.rank == 0
        self.check_lock = lambda: check_lock(self.folder, generation)
        self.background = BackgroundWriter()
        self.events = EventLog(
            self.folder / "events.log", writer=self.writer, guard=self.check_lock, put=self.background.put
        )
        training = config.training
        self.watchdog = Watchdog(
            self.folder,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seconds=training.hang_seconds,
            generation=generation,
            store=ranks.store,
            local_rank=environment_number("LOCAL_RANK", 0),
            node_ranks=environment_number("LOCAL_WORLD_SIZE", 1, least=1),
            report=self._report_hang,
        )
        self.bad_steps = BadSteps(training.max_bad_steps)
        self.spikes = SpikeDetector(training.spike_window, training.spike_threshold, training.max_rollbacks)
        hosts = list(ranks.collect(socket.gethostname()).values())
        self.stragglers = StragglerReport(hosts, ratio=training.straggler_ratio)

    def tell(self, kind: EventKind, message: str) -> None:
        """One event: a line in events.log and on the writer's terminal."""
        self.events.write(kind, message, self.step)
        if self.writer:
            print(f"[{kind}] {message}", flush=True)

    def _report_hang(self, sentence: str, step: int) -> None:
        """Called by the watchdog, just before it ends the process: a file system that hangs must not keep it."""
        if self.background.flush(HANG_REPORT_SECONDS):
            self.events.write("hang", sentence, step)
            self.background.flush(HANG_REPORT_SECONDS)

    def note_failure(self, error: Exception) -> LstError | None:
        """STOPPED.json says how the run ended; an orphan whose folder was taken over writes nothing.

        Returns:
            The other rank's error, where this one only lost its peer.
        """
        try:
            self.check_lock()
        except TrainingFault:
            return None
        elsewhere = None
        if self.ranks.world_size > 1 and not isinstance(error, LstError):
            elsewhere = outcome.await_failure(self.folder)
        outcome.failed(self.folder, error, rank=self.ranks.rank, step=self.step)
        return outcome.as_error(elsewhere) if elsewhere else None

    def close(self) -> None:
        self.background.close()
        if self.engine is not None:
            self.engine.close()

    def go(self, signals: StopSignals) -> Outcome:
        config = self.config
        if self.writer:
            outcome.clear(self.folder)
        self.ranks.on_writer(lambda: require_trackers(config.run.wandb))
        self.ranks.on_writer(lambda: check_shard_sizes(config))
        self.ranks.on_writer(self._check_provenance)
        beat = lambda: self.watchdog.beat(self.step, "evaluation")
        ability = TextAbility(config, self.ranks, self.tell, beat)  # the original needs the room that the engine takes
        self.engine = self.build(config, layout=self.layout, fresh=False)
        assert self.engine.is_writer == self.writer, "rank 0 writes the run folder"
        return self._train(self.engine, ability, signals)

    def _check_provenance(self) -> None:
        """Record what the shards are; refuse others later, and an export to start from that is of another model."""
        recorded = record(self.config, has_begun(self.folder), self.tell)
        if self.config.training.init_from and newest_checkpoint(self.folder) is None:
            for line in check_export(self.config, recorded):
                self.tell("start", line)

    def _train(self, engine: Engine, ability: TextAbility, signals: StopSignals) -> Outcome:
        config, steps = self.config, self.config.training.steps
        peak = job_peak(config, engine.device, self.ranks.world_size)
        recorder = StepRecorder(config, self.ranks, engine.data_size, peak)
        start = self._resume(engine, recorder)
        config_yaml = dump_yaml(absolute(config))
        if start >= steps:
            self.tell("start", f"{start} steps are done, and training.steps={steps}: nothing to train")
        elif self.writer:
            write_text(self.folder / "config.yaml", config_yaml)
        for key, value in engine.describe().items():
            self.tell("engine", f"{key}: {value}")
        held_out = HeldOutEvaluation(config, engine)
        at_start = ability.begin(engine, start)
        saver = CheckpointSaver(
            engine,
            self.ranks,
            self.folder,
            config_yaml,
            config.checkpoint,
            self.tell,
            self.check_lock,
            self.background.flush,
        )
        with contextlib.ExitStack() as stack:
            feed = stack.enter_context(RowFeed(config, self.ranks, engine, self.resumed or None, start, steps))
            self.tell("start", f"{feed.builders} of {self.ranks.world_size} ranks build rows")
            metrics = (
                stack.enter_context(open_metrics(config, start, config_yaml, partial(self.tell, "metrics")))
                if self.writer
                else None
            )
            stack.enter_context(self.background.flushed())
            if metrics is not None and at_start:
                metrics.before_steps(at_start)
            progress = stack.enter_context(Progress(f"train {self.folder.name}", steps, start))
            stopped: signal.Signals | None = None
            while self.step < steps and stopped is None:
                record, told = self._one_step(engine, recorder, feed, lambda: [*signals.numbers(), *saver.numbers()])
                if held_out.due(self.step):
                    self.watchdog.beat(self.step, "evaluation")
                    measured = held_out.measure()
                    self.heldout_loss = (self.step, held_out.mean_loss(measured))
                    record |= measured
                if ability.due(self.step):
                    record |= ability.measure(engine)
                if metrics is not None:
                    evaluated = self.heldout_loss[0] == self.step or self.step == steps
                    self.background.put(partial(self._write_metrics, metrics, record, evaluated))
                    progress.update(self.step, f"loss {record['loss']:.4f}, {record['units_per_second']:,.0f} units/s")
                stopped = agreed(told[: len(ORDER)])
                stable_end = config.training.schedule == "wsd" and self.step == last_stable_step(config.training)
                due = self.step == steps or stable_end or self.step % config.checkpoint.every == 0
                self.watchdog.beat(self.step, "checkpoint")
                saver.poll(told[len(ORDER) :])
                if due or stopped is not None or saver.retry_due:
                    saver.start(self.step, self._position(recorder), kept=stable_end)
            saver.finish()
        if self.writer:
            self.check_lock()
            try:
                if stopped is None:
                    outcome.finished(self.folder, self.step)
                else:
                    outcome.saved(self.folder, self.step, stopped)
            except OSError as error:  # everything is saved: a full disk now costs the note alone
                self.tell("stop", f"{outcome.NAME} could not be written: {error}")
        self.tell("stop", f"saved after {stopped.name}" if stopped else "all steps are done")
        self.background.flush()
        return Outcome(self.step, stopped)

    def _write_metrics(self, metrics: MetricsWriter, record: dict[str, Any], samples: bool) -> None:
        self.check_lock()
        metrics.write(record)
        if samples:
            metrics.samples(record["step"])

    def _one_step(
        self, engine: Engine, recorder: StepRecorder, feed: RowFeed, numbers: Callable[[], list[int]]
    ) -> tuple[dict[str, Any], Sequence[float]]:
        """Step number `self.step` + 1: data, engine, bookkeeping.

        Args:
            numbers: others that travel with those of the record.

        Returns:
            The step's record, and the sums of `numbers` over all ranks.
        """
        step = self.step + 1
        began = time.perf_counter()
        self.watchdog.beat(step, "data")
        batch = next(feed)
        self.stragglers.add("data", batch.waited)
        self.watchdog.beat(step, "step")
        lr = learning_rate(step, self.config.training)
        own = recorder.numbers(batch.rows)
        result = engine.step(
            batch.packed,
            lr,
            frozen=is_frozen(step, self.config.training),
            numbers=lambda: [*own.tolist(), *numbers()],
        )
        sums, told = result.numbers[: len(own)], result.numbers[len(own) :]
        self.step = step
        self.cursors.update(batch.cursors)
        record = recorder.record(step, lr, result, batch.rows, sums, time.perf_counter() - began)
        self._look_for_faults(engine, result, batch)
        every = self.config.training.straggler_every
        if every and step % every == 0:
            self._compare_ranks(engine)
        return record, told

    def _compare_ranks(self, engine: Engine) -> None:
        """Tell of a rank that is slower than the others in what each does alone: waiting for data, a fixed probe."""
        self.watchdog.beat(self.step, "comparison")
        self.stragglers.add("probe", probe(engine.device))
        for straggler in self.stragglers.compare(lambda mine: list(self.ranks.collect(mine).values())):
            self.tell("slow", str(straggler))

    def _look_for_faults(self, engine: Engine, result: StepResult, batch: StepBatch) -> None:
        """Steps that are not finite are counted, and end the run with their batch saved; spikes are told."""
        if result.skipped:
            self.tell("skip", f"loss {result.loss}, gradient norm {result.grad_norm}: nothing was updated")
        if self.bad_steps.observe(result.skipped):
            where = self.folder / "logs" / f"bad-step-{self.step:08d}"
            save_rows(where / f"rows-{engine.data_rank:05d}.npz", batch.rows)
            raise self.bad_steps.fault(self.step, str(where))
        spike = self.spikes.observe(self.step, result.loss)
        if spike is None:
            return
        self.tell("spike", str(spike))
        found = self.ranks.on_writer(lambda: newest_checkpoint(self.folder)) if spike.roll_back else None
        if found is not None:
            self._load(engine, found)
            self.tell("rollback", f"weights and optimizer are those of {found.path.name} again; the data goes on")

    def _resume(self, engine: Engine, recorder: StepRecorder) -> int:
        """Load the newest complete checkpoint, or the initial weights. Returns the step that is done already."""
        found = self.ranks.on_writer(
            lambda: newest_checkpoint(self.folder, lambda message: self.tell("resume", message))
        )
        if found is None:
            if self.config.training.init_from:
                from megatron_lst.inference.export import load_export

                engine.load_weights(load_export(Path(self.config.training.init_from)).weights)
                self.tell("start", f"weights from {self.config.training.init_from}")
            else:
                engine.init_weights()
                self.tell("start", f"weights drawn from training.seed={self.config.training.seed}")
            return 0
        self._load(engine, found)
        position = self.ranks.on_writer(found.position)
        if position["step"] != found.step:
            raise TrainingFault(f"{found.path}: position.json is of step {position['step']}")
        self.step, self.resumed = found.step, position["cursors"]
        recorder.restore(position["raw_tokens"])
        self.bad_steps.restore(position["bad_steps"])
        self.spikes.restore(position["spikes"])
        self.tell("resume", f"from {found.path}")
        before = self.ranks.on_writer(lambda: stored_training(found))
        if changed := change(found.step, before, self.config.training):
            self.tell("schedule", changed)
        return found.step

    def _load(self, engine: Engine, found: Checkpoint) -> None:
        self.watchdog.beat(self.step, "loading")
        load_checkpoint(engine, found, self.config.checkpoint, self.ranks, self.tell)

    def _position(self, recorder: StepRecorder) -> dict[str, Any]:
        """What position.json holds: the cursors of all streams, gathered from the ranks that feed them."""
        merged = dict(self.resumed)
        for part in self.ranks.collect(self.cursors or None).values():
            merged.update(part)
        return {
            "step": self.step,
            "cursors": merged,
            "raw_tokens": recorder.raw_tokens,
            "heldout_loss": self.heldout_loss[1] if self.heldout_loss[0] == self.step else None,
            "bad_steps": self.bad_steps.state(),
            "spikes": self.spikes.state(),
        }
