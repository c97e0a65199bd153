"""How a speech span becomes patches (SPEC 6): every strategy is here, in plain numpy.

A method of patching sees one maximal speech span of n tokens and, if it is aligned, the segments of its words (or text
pieces).  It answers with patch lengths and with which patches close one token late (SPEC 4); `closing` turns these
into the causality map, `chunks` puts tokens and patches together.  To add a method, write a function that returns
`Patches` and name it in `Patcher.cut`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.config.schema import ModelConfig, PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError

SINGLE, STATIC, ALIGNED = "single", "static", "aligned"
"""Methods of patching: how the speech of one document chunk is cut, after the draw of `mixed` and `curriculum`."""


@dataclass(frozen=True)
class Patches:
    """The patches of one speech span of n frames.

    Attributes:
        length: int32 [m], tokens of each patch, all >= 1; sum = n.
        late: bool [m], the patch closes at last + 1 instead of last (SPEC 4).
        clipped: bool [m], true at the first patch of each segment that `max_length` split.
        word: bool [m], the patch holds (part of) a word; false: silence. All true where the strategy knows no words.
    """

    length: np.ndarray
    late: np.ndarray
    clipped: np.ndarray
    word: np.ndarray

    def head(self, frames: int) -> "Patches":
        """These patches cut after `frames` frames; a patch that is cut in two closes late (its end is not a rule's).

        Args:
            frames: 1..n.
        """
        ends = np.cumsum(self.length)  # [m], frames up to the end of each patch
        count = int(np.searchsorted(ends, frames, side="left")) + 1  # patches that begin before the cut
        length, late = self.length[:count].copy(), self.late[:count].copy()
        over = int(ends[count - 1]) - frames  # of the last one, beyond the cut
        if over:
            length[-1] -= over
            late[-1] = True
        return Patches(length, late, self.clipped[:count], self.word[:count])


def single_patches(frames: int) -> Patches:
    """Every token a patch of its own (the baselines: `none` and `bpe`)."""
    none = np.zeros(frames, bool)
    return Patches(np.ones(frames, np.int32), none, none, ~none)


def static_patches(frames: int, size: int) -> Patches:
    """Patches of `size` frames from the span's start; a shorter last one closes late (SPEC 4)."""
    count = -(-frames // size)  # rounded up
    length = np.full(count, size, np.int32)
    length[-1] = frames - (count - 1) * size  # what is left for the last one: 1..size
    none = np.zeros(count, bool)
    return Patches(length, length < size, none, ~none)


def aligned_patches(
    frames: int, segments: np.ndarray, silence: str = "separate", max_length: int = 32, lag: int = 0
) -> Patches:
    """One patch per word (or text piece), and per gap or with the gap joined to the preceding word.

    Args:
        frames: n.
        segments: int [s, 2], half-open, non-empty, increasing within [0, n); may be none (the whole span is a gap).
        silence: `separate`: leading, inner and trailing gaps are patches; `merged`: a gap joins the preceding
            segment, a leading gap the first.
        max_length: longer patches are split left to right.
        lag: 1: no boundary is known in advance: a patch closes one token after its last, unless it has
            `max_length` tokens, which any reader of the prefix can count.
    """
    if silence == "separate":
        cuts = np.concatenate([[0], segments.ravel(), [frames]])  # [2s + 2]: gap, word, gap, word, ..., gap
        spoken = np.zeros(len(cuts) - 1, bool)
        spoken[1::2] = True  # every second interval is a word
    else:
        cuts = np.concatenate([[0], segments[1:, 0], [frames]])  # [s + 1]: a word and the gap behind it
        spoken = np.full(len(cuts) - 1, len(segments) > 0)
    whole = np.diff(cuts)
    keep = whole > 0  # words that touch have an empty gap between them
    whole, spoken = whole[keep], spoken[keep]
    pieces = -(-whole // max_length)  # [intervals], patches of each: rounded up
    if pieces.max(initial=1) == 1:
        length, clipped, word = whole, np.zeros(len(whole), bool), spoken
    else:
        last = np.cumsum(pieces) - 1  # [intervals], index of each one's last patch
        length = np.full(int(last[-1]) + 1, max_length, np.int64)
        length[last] = whole - (pieces - 1) * max_length  # the rest, behind full patches
        clipped = np.zeros(len(length), bool)
        clipped[(last - pieces + 1)[pieces > 1]] = True  # the first patch of each interval that is split
        word = np.repeat(spoken, pieces)  # [m]
    late = length < max_length if lag else np.zeros(len(length), bool)
    return Patches(length.astype(np.int32), late, clipped, word)


def segments_of(document: Document, granularity: str, begin: int, end: int) -> np.ndarray:
    """Frame segments of the words or text pieces that lie in frames [begin, end), relative to `begin`.

    Returns:
        int [s, 2], clipped to the span; empty pieces are left out.

    Raises:
        UserError: the document has no such alignment; names it.
    """
    if granularity == "bpe" and not len(document.piece_frames):
        raise UserError(
            f"document {document.id!r} of source {document.source!r} has no frame spans of text pieces, which "
            f"patching.granularity=bpe needs; align it again with characters, or use granularity=word"
        )
    spans = document.piece_frames if granularity == "bpe" else document.word_frames
    if not len(spans):
        raise UserError(
            f"document {document.id!r} of source {document.source!r} has no aligned words; "
            f"patching.strategy=static needs none"
        )
    if granularity == "bpe":
        spans = spans[spans[:, 1] > spans[:, 0]]
    first = int(np.searchsorted(spans[:, 1], begin, side="right"))  # the first segment that ends behind `begin`
    last = int(np.searchsorted(spans[:, 0], end, side="left"))  # the first that begins at `end` or later
    return np.clip(spans[first:last], begin, end) - begin


def join_patches(parts: Sequence[Patches]) -> Patches:
    """Patches of several stretches one after the other; at least one."""
    if len(parts) == 1:
        return parts[0]
    return Patches(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("length", "late", "clipped", "word"))
    )


def patch_sequence(speech: np.ndarray, cut: Callable[[int, int], Patches]) -> Patches:
    """Patches of a whole token sequence: a unit for each token that is not speech, `cut` for each maximal speech span.

    Args:
        speech: bool [n], which tokens are speech.
        cut: (begin, end) of a maximal speech span -> its patches.
    """
    edges = np.flatnonzero(np.diff(speech.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)  # [spans, 2]
    parts: list[Patches] = []
    done = 0
    for begin, end in edges.tolist():
        parts += [single_patches(begin - done), cut(begin, end)]  # what is between two spans, then the span
        done = end
    parts.append(single_patches(len(speech) - done))
    return join_patches(parts)


@dataclass(frozen=True)
class Patcher:
    """How the speech of one document is cut: a method and what it needs of the configuration.

    Attributes:
        method: SINGLE, STATIC or ALIGNED.
        config: size, granularity, silence, max_length and lag are read.
    """

    method: str
    config: PatchingConfig

    def segments(self, document: Document, begin: int, end: int) -> np.ndarray | None:
        """int [s, 2], what `cut` needs of frames [begin, end) of a document; None where it needs nothing.

        Raises:
            UserError: aligned, and the document has no such alignment.
        """
        return segments_of(document, self.config.granularity, begin, end) if self.method == ALIGNED else None

    def cut(self, count: int, segments: np.ndarray | None = None) -> Patches:
        """The patches of one maximal speech span.

        Args:
            count: its tokens.
            segments: int [s, 2], see `segments`; read by the aligned method alone.
        """
        if self.method == SINGLE:
            return single_patches(count)
        if self.method == STATIC:
            return static_patches(count, self.config.size)
        assert segments is not None, "aligned patches need the segments of the span"
        config = self.config
        return aligned_patches(count, segments, config.silence, config.max_length, config.aligned_lag)


def static_patcher(size: int) -> Patcher:
    """Static patches of `size` tokens; 1 for unpatched models."""
    return Patcher(STATIC, PatchingConfig(size=size))


class PatchingSchedule:
    """The configured strategy: which patcher each document chunk gets, the curriculum included (SPEC 6)."""

    def __init__(self, config: PatchingConfig, tau1: int, tau2: int) -> None:
        """Args: tau1, tau2: global row numbers between which `curriculum` goes from aligned to static."""
        self.config = config
        self.tau1, self.tau2 = tau1, tau2

    def aligned_share(self, row: int) -> float:
        """P: the probability that a speech document in global row `row` is cut by alignment."""
        strategy = self.config.strategy
        if strategy == "aligned":
            return 1.0
        if strategy == "mixed":
            return self.config.mixed_probability
        if strategy != "curriculum" or row >= self.tau2:
            return 0.0
        if row < self.tau1:
            return 1.0
        return 1.0 - (row - self.tau1) / (self.tau2 - self.tau1)

    def choose(self, row: int, draw: float) -> Patcher:
        """How a speech document in global row `row` is cut.

        Args:
            draw: uniform in [0, 1), keyed by the row and, unless `patching.draw=row`, by the document's place in it.
        """
        if self.config.strategy in UNPATCHED:
            return Patcher(SINGLE, self.config)
        return Patcher(ALIGNED if draw < self.aligned_share(row) else STATIC, self.config)

    @property
    def unaligned(self) -> Patcher:
        """How speech is cut that is never aligned: that of conversations (SPEC 7), as generation cuts it."""
        return Patcher(SINGLE if self.config.strategy in UNPATCHED else STATIC, self.config)


UNPATCHED = ("none", "bpe")
"""Strategies of the baselines: every token a unit."""


def evaluation_strategy(strategy: str) -> str:
    """What a model trained with `strategy` is evaluated under: mixed and curriculum become static (SPEC 9)."""
    return strategy if strategy in (*UNPATCHED, "aligned") else "static"


def evaluation_patcher(model: ModelConfig, patching: PatchingConfig, aligned: bool | None = None) -> Patcher:
    """How speech is cut for evaluation, with everything else as the model was trained.

    Args:
        aligned: True, False: by alignment or statically, whatever the model was trained on; None: SPEC 9's rule.

    Raises:
        UserError: aligned patches for an unpatched model.
    """
    if model.kind == "baseline" or patching.strategy in UNPATCHED:
        if aligned:
            raise UserError("aligned patches: the model is an unpatched baseline, each of its tokens is a unit")
        return Patcher(SINGLE, patching)
    if aligned is None:
        aligned = evaluation_strategy(patching.strategy) == "aligned"
    return Patcher(ALIGNED if aligned else STATIC, patching)


def generation_patch_size(model: ModelConfig, patching: PatchingConfig) -> int:
    """p of generation: static patches even for models trained on aligned ones, which would need an aligner (SPEC 9)."""
    return 1 if model.kind == "baseline" or patching.strategy in ("none", "bpe") else patching.size
