"""What is left of a language model's text ability after a warm start: measured before the first step, while it trains
and after the last one, beside the language model's own.

    RUN/text_ability.json    what was measured before the first step, of the language model and of the run's weights
    RUN/metrics.jsonl        `ability_MEASURE` and `ability_MEASURE_original` in the steps of `evaluation.text.every`

Measures are `text_perplexity` of held-out text, and `TASK_METRIC` of tasks of lm-eval.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from megatron_lst.config.schema import Config
from megatron_lst.data.mixture import open_source
from megatron_lst.documents.schema import Document
from megatron_lst.engines.base import Engine
from megatron_lst.engines.scoring import score_on_all_ranks
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import Score, score_chunks
from megatron_lst.evaluation.harness import TextRequests
from megatron_lst.evaluation.items import ScoredChunk
from megatron_lst.evaluation.text import Original, text_loss, text_windows
from megatron_lst.evaluation.text_tasks import TextTasks
from megatron_lst.files import read_json, write_json
from megatron_lst.gpu import gpu_is_usable
from megatron_lst.inference.export import TOKENIZER_FILES
from megatron_lst.training.provenance import FOLDER, tokenizer_of
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.resilience.events import EventKind
from megatron_lst.vocabulary import Vocabulary

FILE = "text_ability.json"
PREFIX, ORIGINAL = "ability_", "_original"
PERPLEXITY = "text_perplexity"


class _Items(NamedTuple):
    """What is scored: pieces of held-out text, and documents of the tasks."""

    windows: list[np.ndarray]
    chunks: list[ScoredChunk]

    @property
    def fingerprint(self) -> str:
        digest = xxhash.xxh3_64()
        for ids in (*self.windows, *(one.chunk.tokens for one in self.chunks)):
            digest.update(np.int64(len(ids)).tobytes() + ids.astype(np.int64).tobytes())
        return digest.hexdigest()


class TextAbility:
    """Makes what `evaluation.text` asks for once, on rank 0, and measures the engine on it. Does nothing where
    `evaluation.text.every` is 0.

    The language model is measured here, before an engine takes the memory, and once: a later start reads its figures.

    Args:
        tell: takes a kind of event and a sentence.
        beat: says that this rank is alive; called while it measures.
        measure_original: False: without the language model.

    Raises:
        UserError: there is nothing to measure on, no tokenizer for the tasks; see `TextTasks` and `Original`.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        tell: Callable[[EventKind, str], None] = lambda kind, sentence: None,
        beat: Callable[[], None] = lambda: None,
        measure_original: bool = True,
    ) -> None:
        self._config, self._ranks, self._tell, self._beat = config, ranks, tell, beat
        self._settings = config.evaluation.text
        self._tasks: TextTasks | None = None  # on rank 0
        self._original: dict[str, float] = {}
        if self._settings.every:
            self._items = ranks.on_writer(self._make)
            self._original = ranks.on_writer(self._measure_original) if measure_original else {}

    @property
    def _path(self) -> Path:
        return Path(self._config.run.dir) / FILE

    def describe(self) -> list[str]:
        """What is measured, a line each."""
        if not self._settings.every:
            return []
        pieces, documents = sum(map(len, self._items.windows)), len(self._items.chunks)
        return [f"text ability: {pieces:,} pieces of held-out text, {documents:,} documents of tasks"]

    def due(self, step: int) -> bool:
        """Whether the record of `step` has measures; the same on every rank."""
        every = self._settings.every
        return every > 0 and (step % every == 0 or step == self._config.training.steps)

    def measure(self, engine: Engine) -> dict[str, float]:
        """Fields of a step's record; collective."""
        measured = self._measures(partial(score_on_all_ranks, engine), self._config.vocabulary)
        return _fields(measured, self._original)

    def begin(self, engine: Engine, step: int) -> dict[str, float]:
        """Measure the weights that training begins with, and write text_ability.json; collective.

        Args:
            step: the last one that is done; above 0 nothing is measured.

        Returns:
            As `measure`; empty where nothing was measured.
        """
        if not self._settings.every:
            return {}
        found = self.measure(engine) if step == 0 else {}
        self._ranks.on_writer(lambda: self._write(found, step))
        return found

    def _write(self, found: dict[str, float], step: int) -> None:
        before = read_json(self._path) or {}
        same = before.get("items") == self._items.fingerprint
        if step and not same:
            self._tell("start", "evaluation.text measures something else than before: step 0 was not measured on it")
        start = found if step == 0 else before.get("start") if same else None
        checkpoint = self._settings.original
        content = {"items": self._items.fingerprint, "checkpoint": checkpoint, "original": self._original}
        write_json(self._path, content | {"start": start})

    def _measures(self, score: Score, vocabulary: Vocabulary) -> dict[str, float]:
        units, found = self._config.data.units, dict[str, float]()
        progress = lambda done, total: self._beat()
        if self._items.windows:
            found[PERPLEXITY] = text_loss(self._items.windows, score, vocabulary, units, progress).perplexity
        if self._items.chunks:
            scores = score_chunks(self._items.chunks, score, vocabulary, units, progress=progress)
            found |= self._graded(scores)
        return found

    def _graded(self, scores: list[np.ndarray]) -> dict[str, float]:
        return self._tasks.grade(scores) if self._tasks is not None else {}  # of rank 0, which writes

    def _make(self) -> _Items:
        config, settings = self._config, self._settings
        texts: list[Iterable[Document]] = []
        for source in config.data.validation:
            if source.kind == "text":
                opened = open_source(config, source)
                texts.append(opened.get(i) for i in range(len(opened)))
        windows = text_windows(chain.from_iterable(texts), config.data.units, settings.pieces)
        if not windows and not settings.tasks:
            raise UserError(
                f"evaluation.text.every={settings.every}: there is nothing to measure on; name tasks under "
                "evaluation.text.tasks, or held-out text of kind: text under data.validation"
            )
        chunks = list[ScoredChunk]()
        if settings.tasks:
            requests = TextRequests(self._encoder(), config.vocabulary, config.data.units)
            self._tasks = TextTasks(
                settings.tasks, requests, settings.tasks_from or None, settings.shots, settings.limit
            )
            chunks = self._tasks.chunks
        return _Items(windows, chunks)

    def _encoder(self) -> Callable[[str, bool], list[int]]:
        """Of the tokenizer that the run's shards were made with."""
        from lst_prep.tokenizer import load_tokenizer, plain_encoder

        info, path = tokenizer_of(self._config)
        found = load_tokenizer(str(path)) if path is not None else None
        if found is None or found.info.fingerprint != info.get("fingerprint"):
            place = Path(self._config.run.dir) / FOLDER / TOKENIZER_FILES[0]
            raise UserError(
                f"evaluation.text.tasks: the tokenizer {info.get('fingerprint', 'of the shards')} is not at hand; "
                f"copy its file to {place} (or .json)"
            )
        return plain_encoder(found)

    def _measure_original(self) -> dict[str, float]:
        if not self._settings.original:
            return {}
        before = read_json(self._path) or {}
        known = before.get("checkpoint"), before.get("items")
        if before.get("original") and known == (self._settings.original, self._items.fingerprint):
            return dict(before["original"])
        self._tell("start", f"measuring the text ability of {self._settings.original}, once")
        device = f"cuda:{torch.cuda.current_device()}" if gpu_is_usable() else "cpu"
        folder = Path(self._settings.original)
        try:
            model = Original(folder, self._config.vocabulary, self._config.data.units, device)
            measured = self._measures(model.model.score, model.vocabulary)
        except torch.OutOfMemoryError:
            raise UserError(
                f"evaluation.text.original: {folder} does not fit {device} in fp32; leave the key out, and run "
                "`lst eval EXPORT --original` and `lst eval harness EXPORT --original` where it fits"
            ) from None
        del model
        if device != "cpu":
            torch.cuda.empty_cache()
        return measured


def _fields(measured: dict[str, float], original: dict[str, float]) -> dict[str, float]:
    found = dict[str, float]()
    for name, value in measured.items():
        found[PREFIX + name] = value
        if name in original:
            found[PREFIX + name + ORIGINAL] = original[name]
    return found


def read_ability(run: Path) -> dict[str, Any]:
    """`original` (measures) and `start` (fields of step 0) of a run; empty where it has none."""
    return read_json(run / FILE) or {}
