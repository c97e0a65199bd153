"""Logical streams and the rows of a data-parallel rank (SPEC 6.1-6.4).

Global row i is row i // S of stream i mod S.  A stream packs its own documents and owes nothing to other streams, to
the number of ranks or to workers; its cursor, a few numbers that travel with each row, is all that a restart needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_lst.config.schema import Config, SourceConfig
from megatron_lst.data.interleaving import (
    Example,
    chat_example,
    draws_needed,
    interleaved_example,
    segment_example,
    spans_of_segments,
    speech_example,
    task_example,
    text_example,
)
from megatron_lst.data.mixture import Mixture, open_mixture
from megatron_lst.data.order import StreamOrder
from megatron_lst.data.packing import Capacity, Position, first_position, pack_example
from megatron_lst.documents.schema import Document
from megatron_lst.draws import number_of, uniforms
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.flops import row_flops
from megatron_lst.patching.row import Chunk, Row, RowStatistics, assemble_row
from megatron_lst.patching.strategies import PatchingSchedule

Cursor = dict[str, Any]
"""What a stream needs to go on: plain JSON."""


@dataclass(frozen=True)
class ChunkOrigin:
    """What one chunk of a row was made of, for people who look at it."""

    source: str
    example: Example
    start: Position
    method: str


@dataclass
class _OpenExample:
    """The example that the stream is in: which one it is, and where."""

    source: int
    document: int
    epoch: int
    example: Example
    position: Position


class Stream:
    """One logical stream of rows. Deterministic, endless, restartable at every row.

    Attributes:
        rows: how many it has given.
        origins: what the last row's chunks were made of.
    """

    def __init__(self, mixture: Mixture, number: int, cursor: Mapping[str, Any] | None = None) -> None:
        """Args: cursor: of the row after which to go on; None: the beginning.

        Raises:
            UserError: the cursor belongs to other data, another seed or another number of streams.
        """
        config = mixture.config
        self._mixture, self.number = mixture, number
        self._seed = config.data.seed
        self._schedule = PatchingSchedule(config.patching, *config.curriculum_rows)
        count = len(mixture.sources)
        weights = np.array([s.weight for s in mixture.sources])  # [sources]
        self._shares: list[float] = (weights / weights.sum()).tolist()
        # Between two visits a source is ahead of its share by up to a document.  Where in that cycle a stream begins
        # is drawn, so that neither the first batches nor the whole run are lopsided.
        means = np.array([d.mean_tokens for d in mixture.documents])  # [sources], raw tokens of a document
        self._phase: list[float] = (means * uniforms(count, self._seed, "phase", number)).tolist()
        self._orders = [
            StreamOrder(owned, number, self._seed, source.name)
            for owned, source in zip(mixture.ownership, mixture.sources, strict=True)
        ]
        self.rows = 0
        self._realised = [0] * count
        self._epochs = [0] * count
        self._positions = [0] * count
        self._open: _OpenExample | None = None
        self._bad_shards: set[tuple[int, int]] = set()
        self._unusable = [0] * count  # documents of each source in a row that gave nothing
        self._damage = ""  # the last that was met
        self.origins: list[ChunkOrigin] = []
        if cursor is not None:
            self._restore(cursor)

    @property
    def cursor(self) -> Cursor:
        """Plain JSON, a few hundred bytes."""
        names = [s.name for s in self._mixture.sources]
        current = self._open
        return {
            "data": self._mixture.fingerprint,
            "rows": self.rows,
            "sources": {
                name: {"epoch": e, "position": p, "tokens": t}
                for name, e, p, t in zip(names, self._epochs, self._positions, self._realised, strict=True)
            },
            "carry": current
            and {
                "source": names[current.source],
                "document": current.document,
                "epoch": current.epoch,
                "span": current.position.span,
                "at": current.position.at,
            },
        }

    @property
    def epochs(self) -> dict[str, float]:
        """Stream-epochs begun of each source, with the fraction of the current one."""
        return {
            s.name: e + p / o.documents
            for s, e, p, o in zip(self._mixture.sources, self._epochs, self._positions, self._orders, strict=True)
        }

    def _restore(self, cursor: Mapping[str, Any]) -> None:
        if cursor["data"] != self._mixture.fingerprint:
            raise UserError(
                f"stream {self.number}: the saved data position belongs to other data (its fingerprint is "
                f"{cursor['data']}, the configured sources, seed and streams have {self._mixture.fingerprint})"
            )
        self.rows = int(cursor["rows"])
        names = [s.name for s in self._mixture.sources]
        for i, name in enumerate(names):
            held = cursor["sources"][name]
            self._epochs[i], self._positions[i] = int(held["epoch"]), int(held["position"])
            self._realised[i] = int(held["tokens"])
        carry = cursor["carry"]
        if carry is not None:
            source = names.index(carry["source"])
            example = self._example(source, carry["document"], carry["epoch"])
            position = Position(int(carry["span"]), int(carry["at"]))
            if example is not None:
                self._open = _OpenExample(source, carry["document"], carry["epoch"], example, position)

    def next_row(self) -> Row:
        """The stream's next row.

        Raises:
            DamagedDataError: a shard cannot be read, and `data.on_damage` is stop, or the stream has nothing else of
                that source.
            UserError: a document that the strategy or the source's kind cannot use; a source none of whose documents
                fits into a row.
        """
        data, vocabulary = self._mixture.config.data, self._mixture.config.vocabulary
        index = self.rows * self._mixture.streams + self.number  # row r of stream s is row r * S + s of the run
        capacity = Capacity(data.units, self._mixture.config.token_cap - data.units)  # U, and N_cap - U
        chunks: list[Chunk] = []
        self.origins = []
        counts = dict.fromkeys((s.name for s in self._mixture.sources), 0)  # raw tokens
        aligned = speech = clipped = skipped = 0
        while capacity.units > 0:
            while self._open is None:
                source = self._due()
                self._open = self._begin(source)
                if self._open is None:
                    skipped += 1
                    self._count_unusable(source)
            current = self._open
            if self._mixture.sources[current.source].kind == "chat":
                patcher = self._schedule.unaligned
            else:
                patcher = self._schedule.choose(index, self._draw(index, len(chunks)))
            packed = pack_example(current.example, current.position, patcher, capacity, vocabulary, not chunks)
            if packed is None:
                if chunks:
                    break
                # Only an adaptation example or a conversation that no row can hold comes here.
                self._open = None
                skipped += 1
                self._count_unusable(current.source)
                continue
            self._unusable[current.source] = 0
            chunks.append(packed.chunk)
            name = self._mixture.sources[current.source].name
            self.origins.append(ChunkOrigin(name, current.example, current.position, patcher.method))
            units, tokens = len(packed.chunk.patch_length), len(packed.chunk.tokens)  # m and n of the chunk
            capacity = capacity.less(units, tokens)
            counts[name] += packed.raw_tokens
            self._realised[current.source] += packed.raw_tokens
            speech, aligned, clipped = speech + packed.speech, aligned + packed.aligned, clipped + packed.clipped
            self._open = None
            # Cut: the rest does not fit, and the next row begins with it.
            if packed.rest is not None:
                self._open = replace(current, position=packed.rest)
                break
        self.rows += 1
        statistics = RowStatistics(counts, aligned, speech, clipped, skipped)
        row = assemble_row(chunks, data.units, vocabulary, index, statistics)
        row.check(vocabulary)
        return row

    def _draw(self, row: int, chunk: int) -> float:
        """Uniform draw of the strategy: by row, and by the document's place in it."""
        config = self._mixture.config.patching
        if config.strategy not in ("mixed", "curriculum"):
            return 0.0
        return float(uniforms(1, self._seed, "strategy", row, chunk if config.draw == "document" else 0)[0])

    def _count_unusable(self, source: int) -> None:
        """A document gave nothing. Its source stays the one that is due: without this a stream that has nothing else of
        it would look for ever, and the loader could only say that no row came."""
        self._unusable[source] += 1
        documents = self._orders[source].documents
        if self._unusable[source] < 2 * documents:  # so many documents in a row hold a whole stream-epoch
            return
        name = self._mixture.sources[source].name
        if self._damage:
            raise DamagedDataError(
                f"source {name!r}: none of the {documents} documents that stream {self.number} has of it can be used, "
                f"so data.on_damage=skip has nothing left to go on with; the last damage: {self._damage}"
            )
        raise UserError(
            f"source {name!r}: none of the {documents} documents that stream {self.number} has of it fits into a row "
            f"of data.units={self._mixture.config.data.units}"
        )

    def _due(self) -> int:
        """The source that lags most in realised raw tokens (deficit round-robin)."""
        due = [
            (done + phase) / share for done, phase, share in zip(self._realised, self._phase, self._shares, strict=True)
        ]
        return due.index(min(due))

    def _begin(self, source: int) -> _OpenExample | None:
        """The next document of a source. None: it was damaged and is skipped."""
        order = self._orders[source]
        epoch, position = self._epochs[source], self._positions[source]
        document = order.at(epoch, position)
        self._positions[source] += 1
        if self._positions[source] == order.documents:
            self._epochs[source], self._positions[source] = epoch + 1, 0
        example = self._example(source, document, epoch)
        return None if example is None else _OpenExample(source, document, epoch, example, first_position(example))

    def _example(self, source: int, document: int, epoch: int) -> Example | None:
        documents = self._mixture.documents[source]
        shard = (source, documents.shard_of(document))
        if shard in self._bad_shards:
            return None
        try:
            read = documents.get(document)
        except DamagedDataError as error:
            if self._mixture.config.data.on_damage == "stop":
                raise
            self._damage = str(error)
            if len(self._bad_shards) > 10_000:
                raise
            self._bad_shards.add(shard)
            return None
        return self._spans(self._mixture.sources[source], read, document, epoch)

    def _spans(self, source: SourceConfig, read: Document, document: int, epoch: int) -> Example:
        if source.kind == "text":
            if not len(read.token_ids):
                raise UserError(f"source {source.name!r}: document {read.id!r} is empty, it has no text pieces")
            return text_example(read)
        if source.kind == "chat":
            return chat_example(read)
        if not read.has_speech:
            raise UserError(
                f"source {source.name!r}: document {read.id!r} has no speech, with aligned words or without, "
                f"which a source of kind {source.kind} needs"
            )
        if source.kind == "speech":
            return speech_example(read)
        if not len(read.token_ids):
            raise UserError(
                f"source {source.name!r}: document {read.id!r} has no transcript, which a source of kind {source.kind} "
                f"needs; kind speech trains on speech alone"
            )
        if source.kind != "interleaved":
            return task_example(read, source.kind)
        data = self._mixture.config.data
        key = (number_of(source.name), document, (epoch << 32) + self.number)  # a draw has three indices
        if len(read.word_frames):
            count = draws_needed(len(read.word_frames), data.spans)
            return interleaved_example(read, data.spans, uniforms(count, self._seed, "spans", *key))
        spans = spans_of_segments(data.spans, data.segments)
        count = draws_needed(len(read.segment_frames), spans)
        return segment_example(read, spans, data.segments, uniforms(count, self._seed, "segments", *key))


@dataclass(frozen=True)
class StepRows:
    """One rank's part of one step.

    Attributes:
        rows: this rank's rows, by increasing global index. Over all ranks, sorted by `Row.index`, they are the
            global batch.
        cursors: stream number (as text, for JSON) -> cursor after the step, of the streams that gave a row.
    """

    rows: list[Row]
    cursors: dict[str, Cursor]


@dataclass(frozen=True)
class Share:
    """Which global rows a data-parallel rank serves.

    With M = min(streams, global batch), row i goes to rank (i mod M) // (M / data_size): a contiguous block of the
    step's rows when there are as many streams as rows, and in every case whole streams.
    """

    global_batch: int
    streams: int
    data_rank: int
    data_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.data_rank < self.data_size:
            raise UserError(f"data-parallel rank {self.data_rank} of {self.data_size} does not exist")
        if self._common % self.data_size:
            raise UserError(
                f"{self.data_size} data-parallel ranks do not divide the {self._common} rows that a step takes from "
                f"different streams; choose a number that divides training.global_batch and data.streams"
            )

    @property
    def _common(self) -> int:
        return min(self.streams, self.global_batch)

    def rows(self, step: int) -> np.ndarray:
        """int64, increasing: this rank's global rows of step `step` (from 0)."""
        i = np.arange(step * self.global_batch, (step + 1) * self.global_batch, dtype=np.int64)  # the step's rows
        return i[(i % self._common) // (self._common // self.data_size) == self.data_rank]

    def owned_streams(self) -> np.ndarray:
        """int64: the streams whose rows this rank serves."""
        s = np.arange(self.streams, dtype=np.int64)
        return s[(s % self._common) // (self._common // self.data_size) == self.data_rank]


def stream_states(
    state: Mapping[str, Any] | None, streams: Sequence[int], total: int, first_row: int
) -> dict[int, Cursor | None]:
    """The cursor of each stream for a start before global row `first_row`, checked.

    Raises:
        UserError: a stream's cursor is missing or stands at another row.
    """
    chosen: dict[int, Cursor | None] = {}
    for stream in streams:
        rows = (first_row - stream + total - 1) // total  # of this stream before `first_row`: rounded up
        cursor = (state or {}).get(str(stream))
        found = int(cursor["rows"]) if cursor else 0
        if found != rows:
            raise UserError(
                f"data position: stream {stream} stands after {found} rows, a start at row {first_row} needs {rows}; "
                f"the state is of another step or of another number of streams"
            )
        chosen[stream] = cursor
    return chosen


class RowStream:
    """The rows of one data-parallel rank, built in this process."""

    def __init__(
        self,
        config: Config,
        data_rank: int = 0,
        data_size: int = 1,
        state: Mapping[str, Any] | None = None,
        start_step: int = 0,
        mixture: Mixture | None = None,
        streams: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            data_rank, data_size: whose rows; without them those of the whole batch.
            state: cursors of all streams after step `start_step` - 1, as merged from `StepRows.cursors`.
            start_step: the first step to give, from 0.
            mixture: opened sources; None opens those of the configuration.
            streams: serve only these of the rank's streams (a worker's part); the others' rows are left out.

        Raises:
            UserError: sources that cannot be opened, ranks that do not divide, a state that does not fit.
        """
        self._share = Share(config.training.global_batch, config.streams, data_rank, data_size)
        self._config, self._step = config, start_step
        owned = self._share.owned_streams().tolist() if streams is None else list(streams)
        first_row = start_step * config.training.global_batch
        states = stream_states(state, owned, config.streams, first_row)
        mixture = mixture or open_mixture(config, config.data.sources, config.streams)
        self._streams = {s: Stream(mixture, s, cursor) for s, cursor in states.items()}

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        rows: list[Row] = []
        cursors: dict[str, Cursor] = {}
        for row, cursor in self.rows_of_step():
            rows.append(row)
            cursors[str(row.index % self._share.streams)] = cursor
        return StepRows(rows, cursors)

    def rows_of_step(self) -> Iterator[tuple[Row, Cursor]]:
        """The next step's rows one by one, each with its stream's cursor after it.

        All that a step reports of a row is known here, where rows are built ahead: the trainer adds up.
        """
        step, self._step = self._step, self._step + 1
        for i in self._share.rows(step).tolist():
            stream = self._streams.get(i % self._share.streams)
            if stream is not None:
                row = stream.next_row()
                statistics = replace(row.statistics, training_flops=row_flops(self._config, row))
                yield replace(row, statistics=statistics), stream.cursor
