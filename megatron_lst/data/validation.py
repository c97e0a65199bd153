"""Held-out rows: the same for every run that holds the same data out, whatever strategy it trains with (SPEC 9)."""

import dataclasses
from typing import Any

from megatron_lst.config.schema import Config, SourceConfig
from megatron_lst.data.mixture import Mixture, open_mixture
from megatron_lst.data.stream import Stream
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import evaluation_strategy


def evaluation_config(config: Config) -> Config:
    """The configuration with the strategy of evaluation: none, bpe and aligned stay, the others become static."""
    strategy: Any = evaluation_strategy(config.patching.strategy)
    return dataclasses.replace(config, patching=dataclasses.replace(config.patching, strategy=strategy))


def validation_rows(config: Config, source: SourceConfig, n: int, mixture: Mixture | None = None) -> list[Row]:
    """The first n rows of a held-out source, each document at most once.

    Args:
        mixture: the opened source, as one stream; None opens it.

    Returns:
        At most n rows; fewer when the source is smaller.

    Raises:
        UserError, DamagedDataError: as for training sources.
    """
    settings = evaluation_config(config)
    opened = mixture or open_mixture(settings, [source], 1)
    opened = dataclasses.replace(opened, config=settings)
    stream = Stream(opened, 0)
    rows: list[Row] = []
    while len(rows) < n and stream.epochs[source.name] < 1:
        row = stream.next_row()
        if stream.epochs[source.name] > 1 and rows:
            break
        rows.append(row)
    return rows
