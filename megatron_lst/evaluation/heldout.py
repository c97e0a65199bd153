"""Held-out documents: losses by modality, speech bits per second, and choice items made from them.

Bits per second of audio (and per word) are comparable across patch sizes and unit BPE; nats per token are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import Progress, Score, score_chunks
from megatron_lst.evaluation.items import ChoiceItem, scored_chunk
from megatron_lst.patching.chunks import Modality, Span, document_span, text_span
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import ALIGNED, STATIC, Patcher
from megatron_lst.vocabulary import IGNORE, Vocabulary

DIRECTIONS = ("S->S", "T->T", "S->T", "T->S")
CONTINUATION, SAME_VOICE = TASKS = ("heldout_continuation", "heldout_same_voice")
"""Wrong words from another document, and from another place of the same one."""


@dataclass(frozen=True)
class HeldOutLosses:
    """Mean cross-entropy in nats over the targets of each modality; NaN where there are none.

    Attributes:
        targets: counted labels, all together.
    """

    loss: float
    loss_speech: float
    loss_text: float
    loss_marker: float
    targets: int


def losses(rows: Sequence[Row], score: Score, vocabulary: Vocabulary) -> HeldOutLosses:
    """Held-out losses of rows as training packs them."""
    sums, counts = np.zeros(3), np.zeros(3, np.int64)
    for row, values in zip(rows, score(rows), strict=True):
        counted = row.labels != IGNORE
        spoken = counted & vocabulary.is_speech(row.labels)
        marker = counted & ((row.labels == vocabulary.text_marker) | (row.labels == vocabulary.speech_marker))
        for i, where in enumerate((spoken, counted & ~spoken & ~marker, marker)):
            sums[i] -= values[where].sum(dtype=np.float64)
            counts[i] += int(where.sum())

    def mean(total: float, count: int) -> float:
        return total / count if count else float("nan")

    spoken_loss, text_loss, marker_loss = (mean(s, c) for s, c in zip(sums.tolist(), counts.tolist(), strict=True))
    targets = int(counts.sum())
    return HeldOutLosses(mean(float(sums.sum()), targets), spoken_loss, text_loss, marker_loss, targets)


@dataclass(frozen=True)
class SpeechBits:
    """Compression of held-out speech, text withheld. `bits_per_word` is None where no word has times."""

    bits_per_second: float
    bits_per_word: float | None
    bits_per_token: float
    seconds: float
    words: int
    left_out: int = 0
    """Words that are longer than a window, or than a row."""


def speech_bits(
    documents: Sequence[Document],
    score: Score,
    vocabulary: Vocabulary,
    patcher: Patcher,
    units: int,
    *,
    max_seconds: float = 60.0,
    frames_of: np.ndarray | None = None,
    progress: Progress = lambda done, total: None,
) -> SpeechBits:
    """Code length of the speech tokens of `BOS <s> speech`, in windows of at most `max_seconds`, each cut at a word
    (where words have no times, at a frame).

    Under aligned patches the boundaries of words are side information that the bits leave out.

    Args:
        patcher: how speech is cut.
        units: U of the rows.
        frames_of: int [codebook], frames that each of its entries stands for; None: one. For unit BPE, the lengths of
            its pieces, so that windows and seconds are those of the audio.

    Raises:
        UserError: no document has speech.
    """
    chunks, seconds, words, all_words, spoken = [], 0.0, 0, 0, False
    limit = int(max_seconds * vocabulary.rate)
    # Static windows fill a row at most; aligned patches may be single frames, as unpatched tokens are.
    limit = min(limit, (units - 2) * (patcher.config.size if patcher.method == STATIC else 1) // vocabulary.depth)
    for document in documents:
        if not document.has_speech:
            continue
        spoken, all_words = True, all_words + len(document.word_frames)
        for begin, end, count in word_windows(document, limit, frames_of):
            span = document_span(document, "speech", begin, end, patcher)
            chunks.append(scored_chunk([span], 0, vocabulary, patcher, document.id))
            frames = end - begin if frames_of is None else int(frames_of[span.ids].sum())
            seconds += frames / float(vocabulary.rate)
            words += count
    if not chunks:
        longer = f": every word is longer than {limit} frames, or than a row" if spoken else ""
        raise UserError(f"held-out bits: no document has speech{longer}")
    scores = score_chunks(chunks, score, vocabulary, units, progress=progress)
    bits = -sum(float(s.sum(dtype=np.float64)) for s in scores) / np.log(2)  # from nats
    tokens = sum(len(s) for s in scores)
    per_word = bits / words if words else None
    return SpeechBits(bits / seconds, per_word, bits / tokens, seconds, words, all_words - words)


def word_windows(document: Document, limit: int, frames_of: np.ndarray | None = None) -> list[tuple[int, int, int]]:
    """Consecutive stretches of whole words, each of at most `limit` frames: (first frame, end, words).

    A word longer than `limit` is left out. Where no word has times, of any frames. `frames_of`: see `speech_bits`.
    """
    if not len(document.word_frames):
        count = len(document.speech_ids)
        return [(begin, min(begin + limit, count), 0) for begin in range(0, count, limit)] if limit > 0 else []
    ends = np.append(document.word_frames[1:, 0], len(document.speech_ids))  # a gap belongs to the word before it
    frames = np.ones(len(document.speech_ids), int) if frames_of is None else frames_of[document.speech_ids]
    passed = np.append(0, np.cumsum(frames))  # [F + 1], frames of audio before each unit
    windows = []
    begin, first = 0, 0
    for word in range(len(ends)):
        if passed[ends[word]] - passed[begin] > limit:
            if word > first:
                windows.append((begin, int(ends[word - 1]), word - first))
                begin, first = int(ends[word - 1]), word
            if passed[ends[word]] - passed[begin] > limit:
                begin, first = int(ends[word]), word + 1
    if first < len(ends):
        windows.append((begin, int(ends[-1]), len(ends) - first))
    return windows


def word_span(document: Document, begin: int, end: int, modality: Modality, patcher: Patcher) -> Span:
    """Words [begin, end) of a document as one span; speech runs to the next word's first frame.

    Where words have no times, segments; how many characters they have is not known.
    """
    words = len(document.word_frames) > 0
    if modality == "text":
        tokens = document.word_tokens if words else document.segment_tokens
        first, last = int(tokens[begin, 0]), int(tokens[end - 1, 1])
        characters = int(document.word_chars[end - 1, 1] - document.word_chars[begin, 0]) if words else 0
        return text_span(document.token_ids[first:last], characters)
    frames = document.word_frames if words else document.segment_frames
    start = int(frames[begin, 0]) if begin else 0
    stop = int(frames[end, 0]) if end < len(frames) else len(document.speech_ids)
    return document_span(document, "speech", start, stop, patcher)


def continuation_choices(
    documents: Sequence[Document],
    direction: str,
    patcher: Patcher,
    *,
    prompt_words: int = 20,
    continuation_words: int = 10,
    items: int = 1000,
    seed: int = 0,
    same_document: bool = False,
    refused: dict[str, str] | None = None,
) -> list[ChoiceItem]:
    """1-of-2 items from held-out speech documents: the true continuation against other words.

    The wrong one is the same number of words from another document, cut (where it is longer) to the true one's
    number of tokens, so that length alone decides as little as possible.  Deterministic in `seed`.

    Where words have no times, a segment continues the one before it.

    Args:
        direction: `S->S`, `T->T`, `S->T` or `T->S`.
        patcher: how the speech will be cut: aligned spans carry their words, and none of them is cut within.
        same_document: the wrong words are from another place of the same document: neither voice nor subject tells
            them apart.
        refused: filled with the items that cannot be made, id -> why: of a document without such a place.

    Raises:
        UserError: fewer than two documents are long enough, or a number that is below 1.
    """
    for name, number in (("prompt", prompt_words), ("continuation", continuation_words), ("items", items)):
        if number < 1:
            raise UserError(f"choice items: {name}={number}: expected a whole number above 0")
    if direction not in DIRECTIONS:
        raise UserError(f"direction {direction!r}: expected one of {', '.join(DIRECTIONS)}")
    names: dict[str, Modality] = {"S": "speech", "T": "text"}
    source, target = names[direction[0]], names[direction[-1]]

    def sizes(document: Document) -> tuple[int, int, int]:
        """Words (or segments) of a document, of a prompt and of a continuation."""
        words = len(document.word_frames)
        return (words, prompt_words, continuation_words) if words else (len(document.segment_frames), 1, 1)

    usable = [d for d in documents if d.has_speech and sizes(d)[0] >= sum(sizes(d)[1:])]
    if len(usable) < 2:
        raise UserError(
            f"choice items need two held-out speech documents of {prompt_words + continuation_words} words, or of two "
            f"segments where words have no times; found {len(usable)}: name more with --documents, or lower "
            f"--prompt-words ({prompt_words}) and --continuation-words ({continuation_words})"
        )
    starts = []
    for d in usable:
        count, *parts = sizes(d)
        starts += [(d, s) for s in range(0, count - sum(parts) + 1, sum(parts))]
    rng = np.random.default_rng(seed)
    result = []
    for document, start in (starts[i] for i in rng.permutation(len(starts))[:items].tolist()):
        count, prompted, continued = sizes(document)
        need = prompted + continued
        if same_document:
            other, elsewhere = document, np.arange(count - continued + 1)
            elsewhere = elsewhere[(elsewhere + continued <= start) | (elsewhere >= start + need)]
            if not len(elsewhere):
                if refused is not None:
                    where = f"{count} words hold no other place of {continued}"
                    refused[f"{document.id}@{start}"] = f"item {document.id}@{start}: {where}"
                continue
            foreign = int(rng.choice(elsewhere))
        else:
            others = [d for d in usable if d is not document]
            other = others[int(rng.integers(len(others)))]
            foreign = int(rng.integers(sizes(other)[0] - sizes(other)[2] + 1))
        middle = start + prompted
        true = word_span(document, middle, start + need, target, patcher)
        false = word_span(other, foreign, foreign + sizes(other)[2], target, patcher)
        if patcher.method != ALIGNED and len(false.ids) > len(true.ids):
            cut = len(true.ids)
            kept = round(false.characters * cut / len(false.ids))
            false = Span(false.modality, false.ids[:cut], None, kept)
        answer = int(rng.integers(2))
        pair = (true, false) if answer == 0 else (false, true)
        prompt = (word_span(document, start, middle, source, patcher),)
        result.append(ChoiceItem(f"{document.id}@{start}", prompt, pair, answer))
    return result
