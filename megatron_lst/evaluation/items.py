"""Choice items, chunks of which a part is scored, and how they are packed into rows (SPEC 9).

S -> S   BOS <s> prompt candidate         one speech span: the patch counter goes on from prompt to candidate
T -> T   BOS prompt candidate
S -> T   BOS <s> prompt <t> candidate     a change of modality needs its marker; the marker is not scored
T -> S   BOS prompt <s> candidate
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.patching.chunks import Span, chunk_of_spans
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.patching.strategies import Patcher
from megatron_lst.vocabulary import Vocabulary


@dataclass(frozen=True)
class ChoiceItem:
    """One question: which candidate continues the prompt?

    Attributes:
        id: unique within its task.
        prompt: spans before the candidate; may be empty of tokens only for pair tasks (sWUGGY, sBLIMP, SALMon).
        candidates: at least two, of one modality.
        answer: index of the right one.
    """

    id: str
    prompt: tuple[Span, ...]
    candidates: tuple[Span, ...]
    answer: int

    def check(self, vocabulary: Vocabulary, *, needs_prompt: bool = True) -> None:
        """Refuse an item that cannot be scored.

        Raises:
            UserError: names the item and what is wrong.
        """

        def refuse(what: str) -> None:
            raise UserError(f"item {self.id}: {what}")

        if len(self.candidates) < 2:
            refuse(f"{len(self.candidates)} candidates, at least 2 are needed")
        if not 0 <= self.answer < len(self.candidates):
            refuse(f"answer {self.answer} of {len(self.candidates)} candidates")
        if needs_prompt and not sum(len(s.ids) for s in self.prompt):
            refuse("the prompt is empty")
        if len({c.modality for c in self.candidates}) > 1:
            refuse("candidates of different modality")
        for name, spans in (("prompt", self.prompt), ("candidate", self.candidates)):
            for number, span in enumerate(spans):
                if name == "candidate" and not len(span.ids):
                    refuse(f"candidate {number} is empty (a missing ending, or missing audio)")
                size = vocabulary.speech_size if span.modality == "speech" else vocabulary.text_size
                if len(span.ids) and not 0 <= span.ids.min() <= span.ids.max() < size:
                    refuse(f"{name} {number}: {span.modality} ids must be in [0, {size})")
                if span.modality == "speech" and (fault := vocabulary.frame_fault(span.ids + vocabulary.text_size)):
                    refuse(f"{name} {number}, token {fault[0]}: {fault[1]}")
                if span.segments is not None and not _within(span.segments, len(span.ids)):
                    refuse(f"{name} {number}: words must be in order and within its {len(span.ids)} tokens")


def _within(segments: np.ndarray, count: int) -> bool:
    begin, end = segments[:, 0], segments[:, 1]
    return bool((begin >= 0).all() and (end <= count).all() and (end > begin).all() and (begin[1:] >= end[:-1]).all())


@dataclass(frozen=True)
class ScoredChunk:
    """A document ready for a row, and what of it is scored.

    Attributes:
        chunk: tokens and units.
        scored: int64, positions whose *next* token is scored (log p stands at them).
    """

    chunk: Chunk
    scored: np.ndarray


def scored_chunk(
    spans: Sequence[Span], first_scored: int, vocabulary: Vocabulary, patcher: Patcher, name: str
) -> ScoredChunk:
    """A chunk of spans (`patching.chunks.chunk_of_spans`) whose spans from number `first_scored` on are scored.

    Raises:
        UserError: see `chunk_of_spans`.
    """
    chunk, begins = chunk_of_spans(spans, vocabulary, patcher, name)
    scored = [np.arange(begin, begin + len(s.ids)) for begin, s in zip(begins, spans, strict=True)][first_scored:]
    return ScoredChunk(chunk, np.concatenate([np.zeros(0, np.int64), *scored]) - 1)


def pack_chunks(
    chunks: Sequence[ScoredChunk], units: int, vocabulary: Vocabulary
) -> tuple[list[Row], list[tuple[int, int]]]:
    """Documents into rows of `units` units, in order.

    Returns:
        (rows, for each document its row and the position of its first token).

    Raises:
        UserError: a document is longer than a row.
    """
    groups: list[list[int]] = []
    room = 0
    for number, one in enumerate(chunks):
        size = len(one.chunk.patch_length)
        if size > units:
            raise UserError(f"item {one.chunk.document_id}: {size} units, the context is {units}")
        if size > room:
            groups.append([])
            room = units
        groups[-1].append(number)
        room -= size
    place: list[tuple[int, int]] = [(0, 0)] * len(chunks)
    rows = []
    for row, group in enumerate(groups):
        offset = 0
        for number in group:
            place[number] = (row, offset)
            offset += len(chunks[number].chunk.tokens)
        rows.append(assemble_row([chunks[n].chunk for n in group], units, vocabulary, index=row))
        rows[-1].check(vocabulary)
    return rows, place
