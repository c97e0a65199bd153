"""A whole job of one rank among thousands: the trainer itself, with the engine on the meta device and no others.

`trainer.train` starts, builds its first batch, takes three steps, saves, and a second call of it resumes. Rows are the
real stream's, of a small set of random text. The engine's schedule runs on the meta device; its update does not.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from megatron_lst.config.schema import Config, SourceConfig
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document
from megatron_lst.documents.writing import write_set
from megatron_lst.engines.base import StepResult, no_numbers
from megatron_lst.parallel.layout import ParallelLayout, check_layout
from megatron_lst.simulation.counting import PHASES, RESUME, Counts, counting, phases_of_training
from megatron_lst.simulation.live import Live
from megatron_lst.simulation.others import Seen, absent_others
from megatron_lst.simulation.rank import absent_world, engine_without_values, stage_rank, state_bytes
from megatron_lst.simulation.trace import trace_schedule

STEPS = 3
_DOCUMENT = 200
"""Tokens of a document."""


@dataclass(frozen=True)
class JobCounts:
    """Of one rank, from its start to a resume.

    Attributes:
        ranks, rank, layout: which one; tensor, pipeline: ranks of the layout.
        phases: phase -> what it does there to files and other ranks, see `counting.Counts.of`.
        groups: process groups that it takes part in making; peers: members of them beside itself, in all.
        sockets: connections of gloo's rings, trees and row exchanges, and to the store; NCCL's are not among them.
        state: bytes on the device between steps.
        step_device, save_device, load_device: most bytes beside the state while it steps, saves or loads.
        bucket: bytes of the largest bucket of gradients.
        save_host: bytes copied to the host for a save.
        files, written: shards' files that it writes, and bytes of them; writers: ranks that write this part.
        read: bytes of the checkpoint that it reads in a load.
        letters: bytes that it sends to rank 0 in a job.
    """

    ranks: int
    rank: int
    layout: str
    tensor: int
    pipeline: int
    phases: dict[str, dict[str, int]]
    groups: int
    peers: int
    sockets: int
    state: int
    step_device: int
    save_device: int
    load_device: int
    bucket: int
    save_host: int
    files: int
    written: int
    writers: int
    read: int
    letters: int


def whole_batches(config: Config, ranks: int) -> Config:
    """The configuration with a global batch that so many ranks can share."""
    parallel, training = config.parallel, config.training
    data = ranks // (parallel.tensor * parallel.pipeline)
    least = max(data, 1) * training.micro_batch * (parallel.pipeline if parallel.virtual > 1 else 1)
    return replace(config, training=replace(training, global_batch=-(-training.global_batch // least) * least))


def looked_at(config: Config, ranks: int) -> list[int]:
    """The first rank of each stage, and the last rank of all."""
    parallel = config.parallel
    data = ranks // (parallel.tensor * parallel.pipeline)
    layout = ParallelLayout(parallel.tensor, parallel.pipeline, parallel.virtual, data, parallel.sequence)
    return sorted({*(stage_rank(layout, stage) for stage in range(parallel.pipeline)), ranks - 1})


def small_job(config: Config, ranks: int, folder: Path) -> Config:
    """The configuration with whole batches, three steps, and a set of random text in `folder` for its data."""
    config = whole_batches(config, ranks)
    vocabulary, streams = config.vocabulary, config.streams
    draw = np.random.default_rng(0)
    tokens = draw.integers(3, vocabulary.pieces, _DOCUMENT).astype(np.int32)
    documents = (Document(id=str(i), source="text", text="", token_ids=tokens) for i in range(2 * streams))
    info = TokenizerInfo("simulation", vocabulary.pieces, vocabulary.bos, vocabulary.eos)
    write_set(folder / "shards", documents, "text", info)
    source = SourceConfig(name="text", kind="text", shards=(str(folder / "shards"),))
    training = replace(config.training, steps=STEPS, warmup_steps=1, straggler_every=0, decay_steps=None)
    return replace(
        config,
        data=replace(config.data, sources=(source,), validation=(), workers=0, streams=streams),
        training=replace(training, init_from=None, hang_seconds=3600.0),
        checkpoint=replace(config.checkpoint, every=STEPS, asynchronous=False),
        run=replace(config.run, dir=str(folder / "run")),
    )


def simulate(config: Config, ranks: int, rank: int) -> JobCounts:
    """One rank's job.

    Raises:
        UserError: the layout cannot work on so many ranks.
    """
    with tempfile.TemporaryDirectory() as name:
        return _Job(small_job(config, ranks, Path(name)), ranks, rank, Path(name)).run()


class _Job:
    def __init__(self, config: Config, ranks: int, rank: int, folder: Path) -> None:
        self.config, self.ranks, self.rank, self.folder = config, ranks, rank, folder
        self.layout = check_layout(config, ranks)
        self.counts, self.live = Counts(), Live()
        self.peaks: dict[str, int] = {}
        self.bytes = self.bucket = 0

    def run(self) -> JobCounts:
        from megatron_lst.training import trainer

        with ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(patch.dict(os.environ, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}))
            stack.enter_context(absent_world(self.ranks, self.rank))
            seen = stack.enter_context(absent_others(self.counts, self.live, self.layout, self.rank))
            if self.rank:
                self._played_by_rank_0(stack)
            stack.enter_context(counting(self.counts, [self.folder]))
            stack.enter_context(phases_of_training(self.counts))
            trainer.train(self.config, self._build)
            found = self._result(seen)
            self.counts.clear()
            longer = replace(self.config, training=replace(self.config.training, steps=STEPS + 1))
            trainer.train(longer, self._build)
        phases = found.phases | {RESUME: self.counts.of(RESUME)}
        return replace(found, phases=phases, read=seen.read, load_device=self.peaks["load"])

    def _result(self, seen: Seen) -> JobCounts:
        files = [name for name in self.counts.written if name.endswith(".distcp")]
        groups = self.counts.groups
        return JobCounts(
            ranks=self.ranks,
            rank=self.rank,
            layout=self.layout.short,
            tensor=self.layout.tensor,
            pipeline=self.layout.pipeline,
            phases={phase: self.counts.of(phase) for phase in PHASES},
            groups=len(groups),
            peers=sum(size - 1 for size in groups),
            sockets=sockets(self.ranks, self.layout.data),
            state=self.bytes,
            step_device=self.peaks.get("step", 0),
            save_device=self.peaks.get("save", 0),
            load_device=0,
            bucket=self.bucket,
            save_host=seen.copied,
            files=len(files),
            written=sum(os.stat(name).st_size for name in files),
            writers=seen.writers,
            read=0,
            letters=sum(seen.letters.values()),
        )

    def _build(self, config: Config, *, layout: ParallelLayout | None = None, fresh: bool = True) -> Any:
        engine = engine_without_values(config, layout=layout)
        self.bytes = sum(state_bytes(engine).values())
        self.bucket = max(
            bucket.grad_data.nbytes
            for chunk in engine._wrapped
            for buffer in chunk.buffers
            for bucket in buffer.buckets
        )
        save, load = engine.save, engine.load

        def watched_save(*arguments: Any, **options: Any) -> Any:
            with self._watched("save"):
                return save(*arguments, **options)

        def watched_load(*arguments: Any) -> None:
            with self._watched("load"):
                load(*arguments)

        def step(packed: Any, lr: float, *, frozen: bool = False, numbers: Any = no_numbers) -> StepResult:
            mine = list(numbers())
            with torch.no_grad():
                engine._summed(torch.zeros(8, dtype=torch.float64, device=engine.device), mine)
            return self._told(engine, packed, mine)

        engine.save, engine.load, engine.step = watched_save, watched_load, step
        engine.init_weights = lambda: None
        return engine

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        before, self.live.peak = self.live.bytes, self.live.bytes
        with self.live:
            yield
        self.peaks[what] = max(self.peaks.get(what, 0), self.live.peak - before)

    def _told(self, engine: Any, packed: Any, mine: list[float]) -> StepResult:
        """The peers of this rank feed the same rows, so that each number comes that often."""
        if "step" not in self.peaks:
            parts = packed.batches[: engine.layout.pipeline * engine.layout.virtual]
            with patch.object(engine, "pack", lambda _: replace(packed, batches=parts)):
                self.peaks["step"] = trace_schedule(engine, []).peak
        peers = self.ranks // self.layout.data
        return StepResult(1.0, 1.0, 1.0, 1.0, 1.0, False, 1, tuple(peers * number for number in mine))

    def _played_by_rank_0(self, stack: ExitStack) -> None:
        """The folder of a checkpoint is made and completed by rank 0."""
        from megatron_lst.training.checkpoint import folders
        from megatron_lst.training.checkpoint.saving import CheckpointSaver

        start, job = CheckpointSaver.start, self

        def played(self: CheckpointSaver, step: int, position: dict[str, Any], **options: Any) -> None:
            with job.counts.uncounted():
                temporary = folders.begin(self._run, step)
            start(self, step, position, **options)
            with job.counts.uncounted():
                folders.finish(temporary, step, position, self._config_yaml, {})

        stack.enter_context(patch.object(CheckpointSaver, "start", played))


def sockets(ranks: int, data: int) -> int:
    """Connections of one rank's gloo groups and to the store, by the algorithms of gloo.

    A reduction is a ring: two neighbours. A broadcast is a tree and a barrier doubles its distance: one peer for each
    power of two. Rows are exchanged with every neighbour. The store has one connection of the trainer and one of the
    watchdog.
    """
    from megatron_lst.training.builders import SHARES_BALANCED

    if ranks == 1:
        return 0
    tree = (ranks - 1).bit_length()
    return min(ranks - 1, 2 + 2 * tree) + min(data, SHARES_BALANCED) - 1 + 2
