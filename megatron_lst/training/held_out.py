"""Held-out losses and choices while training goes on: what every `evaluation.every` steps adds to a step's record."""

import math
from functools import partial

from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import open_source
from megatron_lst.data.validation import validation_rows
from megatron_lst.documents.schema import Document
from megatron_lst.engines.base import Engine
from megatron_lst.engines.scoring import score_on_all_ranks
from megatron_lst.evaluation.choice import run_choice
from megatron_lst.evaluation.heldout import CONTINUATION, continuation_choices, losses
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import evaluation_patcher


class HeldOutEvaluation:
    """Measures a training engine on the validation sources; rows and items are made once.

    Args:
        config: nothing is held out, and nothing measured, where `data.validation` is empty.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self._config = config
        self._score = partial(score_on_all_ranks, engine)
        self._rows: dict[str, list[Row]] = {}
        self._documents: list[Document] = []
        if not config.evaluation.every:
            return
        for source in config.data.validation:
            self._rows[source.name] = validation_rows(config, source, config.evaluation.rows)
            if source.kind == "interleaved" and config.evaluation.directions:
                opened = open_source(config, source)
                self._documents += [opened.get(i) for i in range(len(opened))]

    def due(self, step: int) -> bool:
        """Whether the record of `step` has held-out measures; the same on every rank."""
        every = self._config.evaluation.every
        return bool(self._rows) and every > 0 and (step % every == 0 or step == self._config.training.steps)

    def measure(self) -> dict[str, float | None]:
        """`heldout_SOURCE_loss` and so on in nats, `heldout_choice_S->S` as a share; collective."""
        found: dict[str, float | None] = {}
        for name, rows in self._rows.items():
            measured = losses(rows, self._score, self._config.vocabulary)
            for kind in ("loss", "loss_speech", "loss_text", "loss_marker"):
                value = getattr(measured, kind)
                found[f"heldout_{name}_{kind}"] = None if math.isnan(value) else value
        config = self._config
        patcher = evaluation_patcher(config.model, config.patching)
        for direction in config.evaluation.directions if self._documents else ():
            items = continuation_choices(self._documents, direction, patcher, items=config.evaluation.items)
            result = run_choice(CONTINUATION, items, self._score, config.vocabulary, patcher, config.data.units)
            found[f"heldout_choice_{direction}"] = float(result.credits().mean())
        return found

    def mean_loss(self, measured: dict[str, float | None]) -> float | None:
        """Mean of the sources' `heldout_SOURCE_loss`; None where one of them could not be measured."""
        found = [measured[f"heldout_{name}_loss"] for name in self._rows]
        values = [loss for loss in found if loss is not None]
        return sum(values) / len(values) if values and len(values) == len(found) else None
