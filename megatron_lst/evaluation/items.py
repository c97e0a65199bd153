"""Choice items, and how spans of speech and text become a document whose continuation is scored (SPEC 9).

S -> S   BOS <s> prompt candidate         one speech span: the patch counter goes on from prompt to candidate
T -> T   BOS prompt candidate
S -> T   BOS <s> prompt <t> candidate     a change of modality needs its marker; the marker is not scored
T -> S   BOS prompt <s> candidate
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.patching.strategies import static_patches
from megatron_lst.vocabulary import Vocabulary

Modality = Literal["speech", "text"]


@dataclass(frozen=True)
class Span:
    """A stretch of one modality.

    Attributes:
        tokens: int32 [n], speech ids (not yet shifted into the joint vocabulary) or text ids.
        patches: for aligned patching, the lengths of this span's patches (sum n); None: static. A boundary stands at
            the span's end, so that the prompt's states do not depend on the candidate.
        characters: characters of the text, for per-character scores; 0 where unknown.
    """

    modality: Modality
    tokens: np.ndarray
    patches: tuple[int, ...] | None = None
    characters: int = 0


def speech(ids: Sequence[int] | np.ndarray, patches: Sequence[int] | None = None) -> Span:
    return Span("speech", np.asarray(ids, np.int32), None if patches is None else tuple(patches))


def text(ids: Sequence[int] | np.ndarray, characters: int = 0) -> Span:
    return Span("text", np.asarray(ids, np.int32), None, characters)


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
        if needs_prompt and not sum(len(s.tokens) for s in self.prompt):
            refuse("the prompt is empty")
        if len({c.modality for c in self.candidates}) > 1:
            refuse("candidates of different modality")
        for name, spans in (("prompt", self.prompt), ("candidate", self.candidates)):
            for number, span in enumerate(spans):
                if name == "candidate" and not len(span.tokens):
                    refuse(f"candidate {number} is empty (a missing ending, or missing audio)")
                size = vocabulary.speech_size if span.modality == "speech" else vocabulary.text_size
                if len(span.tokens) and not 0 <= span.tokens.min() <= span.tokens.max() < size:
                    refuse(f"{name} {number}: {span.modality} ids must be in [0, {size})")
                if span.patches is not None and (sum(span.patches) != len(span.tokens) or min(span.patches) < 1):
                    refuse(f"{name} {number}: patch lengths do not sum to its {len(span.tokens)} tokens")


@dataclass(frozen=True)
class Laid:
    """A document ready for a row.

    Attributes:
        chunk: tokens and units.
        scored: int64, positions whose *next* token is scored (log p stands at them).
        frames: bool, of `scored`: the scored token is speech.
    """

    chunk: Chunk
    scored: np.ndarray
    frames: np.ndarray


def lay_out(
    spans: Sequence[Span], first_scored: int, vocabulary: Vocabulary, patch_size: int, name: str, lag: int = 0
) -> Laid:
    """BOS, the spans with a marker where the modality changes (and before leading speech), nothing after.

    Args:
        first_scored: index of the first span whose tokens are scored.
        patch_size: p of static patching; 1 for unpatched models.
        lag: aligned patches close one token late.
    """
    tokens, lengths, late = [vocabulary.bos], [1], [False]
    scored: list[int] = []
    modality: Modality = "text"
    index = 0
    while index < len(spans):
        if spans[index].modality != modality:
            modality = spans[index].modality
            tokens.append(vocabulary.speech_marker if modality == "speech" else vocabulary.text_marker)
            lengths.append(1)
            late.append(False)
        # Consecutive spans of one modality are one span: the static counter goes on.
        group = [index]
        while group[-1] + 1 < len(spans) and spans[group[-1] + 1].modality == modality:
            group.append(group[-1] + 1)
        shift = vocabulary.text_size if modality == "speech" else 0
        static = 0
        for member in group:
            span = spans[member]
            if member >= first_scored:
                scored.extend(range(len(tokens) - 1, len(tokens) - 1 + len(span.tokens)))
            tokens.extend((span.tokens + shift).tolist())
            if modality == "text":
                lengths.extend([1] * len(span.tokens))
                late.extend([False] * len(span.tokens))
            elif span.patches is not None:
                lengths.extend(span.patches)
                late.extend([bool(lag)] * len(span.patches))
            else:
                static += len(span.tokens)
        if static:
            if any(spans[m].patches is not None for m in group):
                raise UserError(f"item {name}: aligned and static speech in one span")
            cut = static_patches(static, patch_size)
            lengths.extend(cut.length.tolist())
            late.extend(cut.late.tolist())
        index = group[-1] + 1
    positions = np.array(scored, np.int64)
    ids = np.array(tokens, np.int32)
    return Laid(
        Chunk(ids, np.array(lengths, np.int32), np.array(late, bool), name),
        positions,
        vocabulary.is_speech(ids[positions + 1]),
    )


def pack(laid: Sequence[Laid], units: int, vocabulary: Vocabulary) -> tuple[list[Row], list[tuple[int, int]]]:
    """Documents into rows of `units` units, in order.

    Returns:
        (rows, for each document its row and the position of its first token).

    Raises:
        UserError: a document is longer than a row.
    """
    groups: list[list[int]] = []
    room = 0
    for number, one in enumerate(laid):
        size = len(one.chunk.patch_length)
        if size > units:
            raise UserError(f"item {one.chunk.document_id}: {size} units, the context is {units}")
        if size > room:
            groups.append([])
            room = units
        groups[-1].append(number)
        room -= size
    place: list[tuple[int, int]] = [(0, 0)] * len(laid)
    rows = []
    for row, group in enumerate(groups):
        offset = 0
        for number in group:
            place[number] = (row, offset)
            offset += len(laid[number].chunk.tokens)
        rows.append(assemble_row([laid[n].chunk for n in group], units, vocabulary, index=row))
    return rows, place
