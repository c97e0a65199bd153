"""What a run will do to its data, before it runs: downloads, epochs, mixture, padding, and when a source runs out.

Rows are really built, for a sample of the streams; the rest is arithmetic on the sizes that shard sets carry.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import Mixture, open_mixture
from megatron_lst.data.stream import Share, Stream
from megatron_lst.errors import UserError


@dataclass(frozen=True)
class SourceForecast:
    """One source over the whole run.

    Attributes:
        name: as configured.
        documents: how many it has.
        share, wanted: realised and configured share of the raw tokens.
        tokens: realised raw tokens that the run will take.
        epochs: times that the whole source is read.
        runs_out_first, runs_out: step at which the first stream has read all its documents once, and the step at
            which the average one has; None: not within the run.
    """

    name: str
    documents: int
    share: float
    wanted: float
    tokens: float
    epochs: float
    runs_out_first: int | None
    runs_out: int | None


@dataclass(frozen=True)
class NodeForecast:
    """One node: data ranks, shards and bytes of one pass over its part, and over the run within the cache's limit."""

    node: int
    ranks: int
    shards: int
    bytes_once: int
    bytes_run: int


@dataclass(frozen=True)
class Forecast:
    """The whole answer. `rows_sampled` rows of `streams_sampled` streams were built for it."""

    steps: int
    rows_sampled: int
    streams_sampled: int
    tokens_per_row: float
    padding: float
    workers: int
    idle_workers: int
    sources: list[SourceForecast]
    nodes: list[NodeForecast]


def simulate(
    config: Config,
    data_size: int,
    ranks_per_node: int,
    steps: int | None = None,
    sample_rows: int = 512,
    mixture: Mixture | None = None,
) -> Forecast:
    """Forecast a run.

    Args:
        data_size: data-parallel ranks.
        ranks_per_node: how many of them share a node, and its cache.
        steps: length of the run; None: training.steps.
        sample_rows: rows to build.

    Raises:
        UserError: ranks that do not divide the streams, or sources that cannot be opened.
    """
    if ranks_per_node < 1:
        raise UserError(f"ranks per node: must be at least 1, got {ranks_per_node}")
    shares = [Share(config.training.global_batch, config.streams, r, data_size) for r in range(data_size)]
    mixture = mixture or open_mixture(config, config.data.sources, config.streams)
    steps = steps or config.training.steps
    counted = _sample(mixture, sample_rows)
    rows = steps * config.training.global_batch
    sources = [_source(config, mixture, i, counted, rows) for i in range(len(mixture.sources))]
    nodes = [
        _node(config, mixture, node, shares[node * ranks_per_node : (node + 1) * ranks_per_node], sources)
        for node in range(-(-data_size // ranks_per_node))
    ]
    streams_a_rank = config.streams // data_size
    return Forecast(
        steps=steps,
        rows_sampled=counted.rows,
        streams_sampled=counted.streams,
        tokens_per_row=float(counted.tokens.sum()) / counted.rows,
        padding=counted.padding / (counted.rows * config.data.units),
        workers=min(config.data.workers, streams_a_rank),
        idle_workers=max(0, config.data.workers - streams_a_rank),
        sources=sources,
        nodes=nodes,
    )


@dataclass(frozen=True)
class _Counted:
    """What sampled rows hold: tokens by source, raw tokens of the documents read, padding units."""

    rows: int
    streams: int
    tokens: np.ndarray
    raw: np.ndarray
    padding: int


def _sample(mixture: Mixture, rows: int) -> _Counted:
    """Rows of streams spread over all, the same number from each."""
    streams = min(mixture.streams, max(1, rows // 16))
    chosen = np.unique(np.linspace(0, mixture.streams - 1, streams).astype(int)).tolist()
    names = [s.name for s in mixture.sources]
    tokens, raw, padding, count = np.zeros(len(names)), np.zeros(len(names)), 0, 0
    pad = mixture.config.vocabulary.pad
    for number in chosen:
        stream = Stream(mixture, number)
        for _ in range(-(-rows // len(chosen))):
            row = stream.next_row()
            tokens += [row.statistics.tokens_by_source[name] for name in names]
            padding += int(np.count_nonzero(row.tokens == pad))
            count += 1
            for part in stream.origins:
                if part.start.span == 0 and part.start.at == int(part.example.spans[0, 1]):
                    raw[names.index(part.source)] += part.example.document.raw_tokens
    return _Counted(count, len(chosen), tokens, raw, padding)


def _source(config: Config, mixture: Mixture, number: int, counted: _Counted, rows: int) -> SourceForecast:
    source, documents = mixture.sources[number], mixture.documents[number]
    weights = np.array([s.weight for s in mixture.sources])
    total = float(counted.tokens.sum())
    share = float(counted.tokens[number]) / total
    wanted = float(weights[number] / weights.sum())
    taken = total / counted.rows * rows * wanted
    # Realised tokens of one document differ from the estimate in the index (markers, the interleaving's draw).
    ratio = float(counted.tokens[number] / counted.raw[number]) if counted.raw[number] else 1.0
    epoch = float(documents.shard_tokens.sum()) * ratio
    owned = mixture.ownership[number]
    per_stream = []
    for stream in range(mixture.streams):
        begin, end = (bounds.tolist() for bounds in owned.of(stream))
        per_stream.append(sum(int(documents.tokens_of(a, b).sum()) for a, b in zip(begin, end, strict=True)) * ratio)

    a_step = taken / rows * config.training.global_batch

    def step_of(tokens: float) -> int | None:
        step = int(np.ceil(tokens * mixture.streams / a_step))
        return step if step * config.training.global_batch <= rows else None

    return SourceForecast(
        name=source.name,
        documents=len(documents),
        share=share,
        wanted=wanted,
        tokens=taken,
        epochs=taken / epoch,
        runs_out_first=step_of(min(per_stream)),
        runs_out=step_of(float(np.mean(per_stream))),
    )


def _node(
    config: Config, mixture: Mixture, node: int, shares: list[Share], sources: list[SourceForecast]
) -> NodeForecast:
    streams = np.concatenate([share.owned_streams() for share in shares])
    limit = config.data.cache_gigabytes
    shards = once = 0
    run = 0.0
    sizes: list[tuple[int, float]] = []
    for documents, owned, source in zip(mixture.documents, mixture.ownership, sources, strict=True):
        first = np.concatenate([owned.of(int(s))[0] for s in streams])
        held = np.unique(np.searchsorted(documents.shard_first, first, side="right") - 1)
        size = int(documents.shard_bytes[held].sum())
        shards, once = shards + len(held), once + size
        sizes.append((size, source.epochs))
    fits = limit is None or once <= limit * 1e9
    for size, epochs in sizes:
        # A cache that holds the node's part is filled once; a smaller one is filled again in every epoch.
        run += size * min(1.0, epochs) if fits else size * epochs
    return NodeForecast(node, len(shares), shards, once, round(run))


def as_plain(forecast: Forecast) -> dict[str, object]:
    """For JSON."""
    return dataclasses.asdict(forecast)
