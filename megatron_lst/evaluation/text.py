"""Held-out text: how much of a language model's ability is left after a warm start.

The loss is in nats a piece of the tokenizer, of documents without speech, each after BOS; the language model that the
run began with is scored on the same pieces, each softmax over its own vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import Progress, Score, score_chunks
from megatron_lst.evaluation.items import scored_chunk
from megatron_lst.inference.families import described
from megatron_lst.inference.model import LatentSpeechTextModel
from megatron_lst.inference.warm_start import read_object, warm_start
from megatron_lst.patching.chunks import text_span
from megatron_lst.patching.strategies import static_patcher
from megatron_lst.vocabulary import Vocabulary
from megatron_lst.weights import canonical_shapes


@dataclass(frozen=True)
class TextLoss:
    """Mean over `pieces`, in nats."""

    loss: float
    pieces: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def text_windows(documents: Iterable[Document], units: int, pieces: int) -> list[np.ndarray]:
    """Ids of documents without speech, in order, until there are `pieces`; longer documents are cut to rows.

    Args:
        units: U; a window has U - 1 pieces at most, for BOS comes before it.

    Returns:
        int32 [n] each, n at least 1.
    """
    found: list[np.ndarray] = []
    left = pieces
    for document in documents:
        if document.has_speech:
            continue
        for begin in range(0, len(document.token_ids), units - 1):
            window = document.token_ids[begin : begin + min(units - 1, left)]
            if len(window):
                found.append(window)
                left -= len(window)
            if not left:
                return found
    return found


def text_loss(
    windows: Sequence[np.ndarray],
    score: Score,
    vocabulary: Vocabulary,
    units: int,
    progress: Progress = lambda done, total: None,
) -> TextLoss:
    """Loss of an LST or a baseline, whose softmax holds speech and markers too."""
    patcher = static_patcher(1)  # there is only text
    chunks = [scored_chunk([text_span(w)], 0, vocabulary, patcher, f"window {i}") for i, w in enumerate(windows)]
    scores = score_chunks(chunks, score, vocabulary, units, progress=progress)
    return _mean(scores)


class Original:
    """A language model's checkpoint, of a family that `lst warm-start` takes, in float32.

    Args:
        folder: config.json and safetensors.
        vocabulary: whose text ids it must have.
        units: most pieces of a window and BOS, for its sliding window.

    Attributes:
        model: it, as a baseline whose softmax is over its own ids.
        vocabulary: its ids; what is scored is made with them.

    Raises:
        UserError: another family, or another vocabulary; see `warm_start`.
        DamagedDataError: see `warm_start`.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, units: int, device: str = "cpu") -> None:
        there = described(read_object(folder / "config.json"))
        if there.wrong:
            raise UserError(f"{folder}: this checkpoint is not supported:\n  " + "\n  ".join(there.wrong))
        if there.text_size != vocabulary.text_size:
            raise UserError(
                f"{folder}: {there.text_size} text ids, vocabulary.text_size={vocabulary.text_size}: "
                "it is another model's tokenizer"
            )
        own = Vocabulary(there.text_size, 1, vocabulary.bos, vocabulary.eos, multiple=1)
        model = ModelConfig(kind="baseline", **there.model)
        config = Config(vocabulary=own, model=model, patching=PatchingConfig(strategy="none"))
        weights = {name: torch.zeros(shape) for name, shape in canonical_shapes(config).items()}
        warm_start(folder, weights, model, own, units)
        self.model = LatentSpeechTextModel.from_weights(model, own, weights, 1).to(device)
        # Logits of its own ids alone: speech and markers, which it does not have, get no probability.
        head = self.model.head
        head.weight = torch.nn.Parameter(head.weight[: own.text_size], requires_grad=False)
        head.out_features = own.text_size
        self.vocabulary, self._units = own, units

    def loss(self, windows: Sequence[np.ndarray], progress: Progress = lambda done, total: None) -> TextLoss:
        """Loss of the same windows as `text_loss`, over its own vocabulary."""
        return text_loss(windows, self.model.score, self.vocabulary, self._units, progress)


def _mean(scores: Sequence[np.ndarray]) -> TextLoss:
    pieces = sum(len(s) for s in scores)
    return TextLoss(-sum(float(s.sum(dtype=np.float64)) for s in scores) / pieces, pieces)
