"""Spans of text and speech become a chunk: the one place where tokens and patches come together (SPEC 1, 6).

training            data/packing adds the spans of a document one by one, as many as fit into a row
evaluation          `chunk_of_spans`: prompt and candidate
generation          `prompt_tokens`: the same without patches, which decoding counts itself
benchmarks, tests   `chunk_of_tokens`: token sequences that are there already
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_lst.config.schema import PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.patching.row import Chunk
from megatron_lst.patching.strategies import (
    ALIGNED,
    SINGLE,
    Patcher,
    Patches,
    join_patches,
    patch_sequence,
    single_patches,
)
from megatron_lst.vocabulary import Vocabulary

Modality = Literal["speech", "text"]
_ONE = single_patches(1)


@dataclass(frozen=True)
class Span:
    """A stretch of one modality.

    Attributes:
        ids: int32 [n], speech ids (not yet shifted into the joint vocabulary) or text ids.
        segments: int [s, 2], half-open, the words (or text pieces) of speech, in tokens from the span's first one;
            None: not known. Only aligned patching reads them.
        characters: characters of the text, for per-character scores; 0 where unknown.
    """

    modality: Modality
    ids: np.ndarray
    segments: np.ndarray | None = None
    characters: int = 0


def speech_span(ids: Sequence[int] | np.ndarray, segments: Sequence[Sequence[int]] | np.ndarray | None = None) -> Span:
    """Args: ids: int [F], or [F, Q]. segments: int [s, 2], in frames."""
    given = np.asarray(ids, np.int32)
    depth = 1 if given.ndim == 1 else given.shape[1]  # Q
    found = None if segments is None else np.asarray(segments, np.int64).reshape(-1, 2) * depth  # frames -> tokens
    return Span("speech", given.reshape(-1), found)


def text_span(ids: Sequence[int] | np.ndarray, characters: int = 0) -> Span:
    return Span("text", np.asarray(ids, np.int32), None, characters)


def document_span(document: Document, modality: Modality, begin: int, end: int, patcher: Patcher) -> Span:
    """Frames (of speech) or pieces (of text) [begin, end) of a document, with the segments that the patcher needs."""
    if modality == "text":
        return text_span(document.token_ids[begin:end])
    return speech_span(document.speech_ids[begin:end], patcher.segments(document, begin, end))


class ChunkBuilder:
    """A chunk under construction; it begins with BOS.

    Attributes:
        tokens, units: how many it has.
        learning: whether what is added from now on is learnt, or only read.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.learning = True
        self._learnt: list[bool] = []
        self.tokens = self.units = 0
        self._tokens: list[np.ndarray] = []
        self._patches: list[Patches] = []
        self.single(vocabulary.bos)

    def _add(self, tokens: np.ndarray, patches: Patches) -> None:
        self._tokens.append(tokens)
        self._patches.append(patches)
        self._learnt.append(self.learning)
        self.tokens += len(tokens)
        self.units += len(patches.length)

    def single(self, token: int) -> None:
        """BOS, EOS or a marker: a unit of its own."""
        self._add(np.array([token], np.int32), _ONE)

    def marker(self, modality: Modality) -> None:
        """The marker that begins a span."""
        self.single(self.vocabulary.text_marker if modality == "text" else self.vocabulary.speech_marker)

    def text(self, ids: np.ndarray) -> None:
        """Text: each piece a unit. ids: int [n]."""
        self._add(ids.astype(np.int32, copy=False), single_patches(len(ids)))

    def speech(self, ids: np.ndarray, patches: Patches) -> None:
        """Speech ids, shifted into the joint vocabulary, frame after frame.

        Args:
            ids: int [F] or [F, Q], as many in all as the sum of the patches' lengths.
        """
        self._add(ids.reshape(-1).astype(np.int32) + self.vocabulary.text_size, patches)  # [F, Q] -> [F*Q]

    def build(self, document_id: str = "") -> Chunk:
        length, late = (np.concatenate([getattr(p, name) for p in self._patches]) for name in ("length", "late"))
        learnt = None
        if not all(self._learnt):
            learnt = np.repeat(self._learnt, [len(part) for part in self._tokens])  # bool [n], from one a part
            learnt[0] = False  # nothing predicts BOS
        return Chunk(np.concatenate(self._tokens), length, late, document_id, learnt)


def chunk_of_spans(
    spans: Sequence[Span], vocabulary: Vocabulary, patcher: Patcher, name: str = "", *, leading_marker: bool = False
) -> tuple[Chunk, np.ndarray]:
    """BOS, then the spans, with a marker where the modality changes and before leading speech; nothing after.

    Consecutive speech spans are one maximal speech span: static patches go on from one to the next, aligned ones end
    where a span ends, so that a prompt's states do not depend on what follows it (SPEC 9).

    Args:
        name: for messages.
        leading_marker: also before leading text, as in interleaved documents.

    Returns:
        (the chunk, int64 [spans]: index of each span's first token in it).

    Raises:
        UserError: aligned patches for a span whose segments are not known.
    """
    builder = ChunkBuilder(vocabulary)
    modality: Modality | None = None if leading_marker else "text"
    begins = np.zeros(len(spans), np.int64)
    first = 0
    while first < len(spans):
        if spans[first].modality != modality:
            modality = spans[first].modality
            builder.marker(modality)
        last = first + 1
        # Spans `first` to `last` - 1 are one maximal span of a modality.
        while last < len(spans) and spans[last].modality == modality:
            last += 1
        group = spans[first:last]
        ids = np.concatenate([span.ids for span in group])
        sizes = [len(span.ids) for span in group]
        begins[first:last] = builder.tokens + np.cumsum([0, *sizes[:-1]])  # each span's first token in the chunk
        if modality == "text":
            builder.text(ids)
        elif len(ids):
            builder.speech(ids, _cut(group, patcher, name))
        first = last
    return builder.build(name), begins


def _cut(group: Sequence[Span], patcher: Patcher, name: str) -> Patches:
    """The patches of consecutive speech spans, together not empty."""
    if patcher.method != ALIGNED:
        return patcher.cut(sum(len(span.ids) for span in group))
    parts = []
    for span in group:
        if span.segments is None:
            raise UserError(f"item {name}: its spoken words have no times, which aligned patches need")
        if len(span.ids):
            parts.append(patcher.cut(len(span.ids), span.segments))
    return join_patches(parts)


def prompt_tokens(
    spans: Sequence[Span], vocabulary: Vocabulary, then: Modality | None = None, *, leading_marker: bool = False
) -> list[int]:
    """Ids of the joint vocabulary for generation: `chunk_of_spans` without patches.

    Args:
        then: modality of the response; its marker ends the prompt where the last span is of the other one.
    """
    chunk, _ = chunk_of_spans(spans, vocabulary, Patcher(SINGLE, PatchingConfig()), leading_marker=leading_marker)
    tokens: list[int] = chunk.tokens.tolist()
    if then is not None and then != (spans[-1].modality if spans else "text"):
        tokens.append(vocabulary.text_marker if then == "text" else vocabulary.speech_marker)
    return tokens


def chunk_of_tokens(
    tokens: np.ndarray, vocabulary: Vocabulary, cut: Callable[[int, int], Patches], name: str = ""
) -> Chunk:
    """A sequence of the joint vocabulary as a chunk.

    Args:
        tokens: int [n], n >= 1; they begin with a token that is not speech.
        cut: (begin, end) of a maximal speech span -> its patches.
    """
    patches = patch_sequence(vocabulary.is_speech(tokens), cut)
    return Chunk(tokens.astype(np.int32), patches.length, patches.late, name)
