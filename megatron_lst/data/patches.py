"""How long the patches of each strategy are on real alignments: means, quantiles and histograms (SPEC 6)."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.config.schema import Config, PatchingConfig
from megatron_lst.data.mixture import open_source
from megatron_lst.data.source import DocumentSet, JoinedSets
from megatron_lst.documents.schema import Document
from megatron_lst.draws import number_of, permutation
from megatron_lst.errors import UserError
from megatron_lst.patching.chunks import Span, chunk_of_spans, document_span
from megatron_lst.patching.row import Chunk
from megatron_lst.patching.strategies import ALIGNED, STATIC, Patcher, evaluation_patcher
from megatron_lst.vocabulary import rate_text


@dataclasses.dataclass(frozen=True)
class PatchLengths:
    """Patch lengths of one strategy over a sample of documents.

    Attributes:
        name: for the table.
        word, silence: int [.], frames of the patches with words and of those without.
        clipped: share of aligned patches that `max_length` split.
    """

    name: str
    word: np.ndarray
    silence: np.ndarray
    clipped: float

    def summary(self) -> dict[str, Any]:
        """Numbers for the table: means, median, 95th percentile, clipped share, tokens a patch overall."""
        both = np.concatenate([self.word, self.silence])
        return {
            "strategy": self.name,
            "patches": len(both),
            "mean": float(both.mean()),
            "mean of words": float(self.word.mean()) if len(self.word) else None,
            "mean of silences": float(self.silence.mean()) if len(self.silence) else None,
            "median": float(np.median(both)),
            "95 %": float(np.percentile(both, 95)),
            "longest": int(both.max()),
            "clipped": self.clipped,
        }


def variants(config: PatchingConfig) -> dict[str, tuple[str, PatchingConfig]]:
    """Name -> (method, configuration) of every strategy worth comparing under this configuration."""
    chosen: dict[str, tuple[str, PatchingConfig]] = {
        f"static {config.size}": (STATIC, config),
    }
    for granularity in ("word", "bpe"):
        for silence in ("separate", "merged"):
            changed = dataclasses.replace(config, granularity=granularity, silence=silence)  # type: ignore[arg-type]
            chosen[f"aligned, {granularity}, silence {silence}"] = (ALIGNED, changed)
    return chosen


def measure_patches(documents: Sequence[Document], config: PatchingConfig) -> list[PatchLengths]:
    """Patch lengths of each strategy, every document as one span; strategies that the data cannot serve are left out.

    Raises:
        UserError: no document has speech.
    """
    spoken = [d for d in documents if d.has_speech]
    if not spoken:
        raise UserError("none of the documents has speech, so there are no patches to measure")
    measured = []
    for name, (method, changed) in variants(config).items():
        times = "piece_frames" if changed.granularity == "bpe" else "word_frames"
        if method == ALIGNED and not all(len(getattr(d, times)) for d in spoken):
            continue
        patcher = Patcher(method, changed)
        cut = [patcher.cut(len(span.ids), span.segments) for span in (_whole(d, patcher) for d in spoken)]
        length = np.concatenate([c.length for c in cut]) // spoken[0].depth  # in frames
        word = np.concatenate([c.word for c in cut])
        clipped = int(sum(c.clipped.sum() for c in cut))
        ended = int(sum(len(c.length) for c in cut))
        measured.append(PatchLengths(name, length[word], length[~word], clipped / ended))
    return measured


def _whole(document: Document, patcher: Patcher) -> Span:
    return document_span(document, "speech", 0, len(document.speech_ids), patcher)


def patch_document(document: Document, config: Config, strategy: str | None = None) -> Chunk:
    """A whole document as its modality alone makes it: speech cut into patches, or text; BOS first (SPEC 6, 7).

    Args:
        strategy: static or aligned; None: what the configuration's strategy evaluates with.

    Returns:
        Tokens of the joint vocabulary, and the length of each unit.

    Raises:
        UserError: a strategy that is neither, a conversation, or aligned patches of a document without word times.
    """
    if len(document.turn_spans):
        raise UserError(f"document {document.id}: a conversation has turns in both; look at its row: lst data inspect")
    patcher = evaluation_patcher(config.model, config.patching)
    if strategy is not None:
        if strategy not in (STATIC, ALIGNED):
            raise UserError(f"patch_document: strategy={strategy!r}: expected {STATIC} or {ALIGNED}")
        patcher = Patcher(strategy, config.patching)
    spoken = document.has_speech
    count = len(document.speech_ids) if spoken else len(document.token_ids)
    span = document_span(document, "speech" if spoken else "text", 0, count, patcher)
    return chunk_of_spans([span], config.vocabulary, patcher, document.id)[0]


def sample_documents(documents: DocumentSet | JoinedSets, count: int, seed: int = 0, name: str = "") -> list[Document]:
    """A keyed random sample of a source, in shard order."""
    chosen = np.sort(permutation(len(documents), seed, "sample", number_of(name))[:count])
    return [documents.get(int(i)) for i in chosen]


def sample_speech(config: Config, count: int) -> list[Document]:
    """A sample over all sources with speech that may be aligned.

    Raises:
        UserError: no source has speech.
    """
    sources = [s for s in config.data.sources if s.kind not in ("text", "chat")]
    if not sources:
        raise UserError("data.sources: none has speech, so there are no patches to measure")
    found: list[Document] = []
    for source in sources:
        found += sample_documents(open_source(config, source), -(-count // len(sources)), config.data.seed, source.name)
    return found


def draw_patches(measured: Sequence[PatchLengths], path: Path, rate: Fraction) -> Path:
    """Histograms of patch lengths, one panel a strategy, words and silences apart; `rate` in frames a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(int(np.concatenate([m.word, m.silence]).max()) for m in measured)
    bins = np.arange(0.5, longest + 1.5)
    figure, axes = pyplot.subplots(
        len(measured), 1, figsize=(8, 2.1 * len(measured)), sharex=True, constrained_layout=True, squeeze=False
    )
    for axis, lengths in zip(axes[:, 0], measured, strict=True):
        axis.hist(lengths.word, bins=bins, color="#f2a65a", alpha=0.9, label=f"words ({len(lengths.word):,})")
        if len(lengths.silence):
            axis.hist(
                lengths.silence, bins=bins, color="#6f8fae", alpha=0.7, label=f"silences ({len(lengths.silence):,})"
            )
        axis.set_title(f"{lengths.name}: mean {lengths.summary()['mean']:.2f} frames", fontsize=9)
        axis.set_ylabel("patches")
        axis.legend(fontsize=8, frameon=False)
    axes[-1, 0].set_xlabel(f"frames a patch ({rate_text(rate)} a second)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
