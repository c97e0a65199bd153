"""Which words of a document are read and which are heard: the alternating spans of one example (SPEC 7).

An example is drawn afresh each epoch, from numbers that the caller keys by document and epoch; here is no state.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from megatron_lst.config.schema import SegmentConfig, SpanConfig
from megatron_lst.documents.schema import PLAIN, SPEECH, TEXT, Document


@dataclass(frozen=True)
class Example:
    """What one pass over one document trains on.

    Attributes:
        document: what is read.
        spans: int64 [k, 3], kind, begin, end; text in text pieces, speech in frames; never empty.
        whole: the document must stand in one row (adaptation, SPEC 9; conversations, SPEC 7).
        learnt: bool [k, 2], whether each span's marker and its tokens are learnt, or only read; None: all are.
        eos: EOS ends it.
    """

    document: Document
    spans: np.ndarray
    whole: bool = False
    learnt: np.ndarray | None = None
    eos: bool = True


def text_example(document: Document) -> Example:
    """A text document: `BOS text EOS`."""
    return Example(document, np.array([[PLAIN, 0, len(document.token_ids)]], np.int64))


def speech_example(document: Document) -> Example:
    """Speech alone: `BOS <s> speech EOS`. Beyond the paper."""
    return Example(document, np.array([[SPEECH, 0, len(document.speech_ids)]], np.int64))


def task_example(document: Document, task: str) -> Example:
    """`asr`: speech then text; `tts`: text then speech, learnt without the response's marker (SPEC 9)."""
    text, speech = [TEXT, 0, len(document.token_ids)], [SPEECH, 0, len(document.speech_ids)]
    spans = np.array([speech, text] if task == "asr" else [text, speech], np.int64)
    return Example(document, spans, whole=True, learnt=np.array([[False, False], [False, True]]))


def chat_example(document: Document) -> Example:
    """A conversation, learnt where the assistant speaks, the markers of its spans included (SPEC 7)."""
    learnt = document.turn_learnt.astype(bool)
    spans = document.turn_spans.astype(np.int64)
    return Example(document, spans, whole=True, learnt=np.stack([learnt, learnt], 1), eos=False)


def interleaved_example(document: Document, config: SpanConfig, draws: np.ndarray) -> Example:
    """Alternate text and speech spans over the document's words.

    A speech span of words a..z takes the frames from a's begin to the begin of the word after z; the document's
    first frame and last frame belong to its first and last word, so that every frame has exactly one word.

    Args:
        document: with words.
        draws: float64 in [0, 1), at least `draws_needed(words, config)` of them.
    """
    bounds, speech = word_spans(len(document.word_frames), config, draws)
    return Example(document, _alternating(document, document.word_frames, document.word_tokens, bounds, speech))


def _alternating(
    document: Document, frames: np.ndarray, tokens: np.ndarray, bounds: np.ndarray, speech: np.ndarray
) -> np.ndarray:
    """The spans of an example, int64 [k, 3].

    Args:
        frames, tokens: int32 [n, 2], spans of the document's words or segments.
        bounds, speech: what `word_spans` returned.
    """
    begin, end = bounds[:-1], bounds[1:]  # [k] each, in words
    first_frame = np.append(frames[:, 0], len(document.speech_ids))  # [n + 1], where each word begins, and the end
    first_frame[0] = 0  # silence before the first word belongs to it
    first_piece = np.append(tokens[:, 0], len(document.token_ids))  # [n + 1]
    spans = np.empty((len(begin), 3), np.int64)
    spans[:, 0] = np.where(speech, SPEECH, TEXT)
    spans[:, 1] = np.where(speech, first_frame[begin], first_piece[begin])  # speech counts in frames, text in pieces
    spans[:, 2] = np.where(speech, first_frame[end], first_piece[end])
    return spans


def spans_of_segments(spans: SpanConfig, segments: SegmentConfig) -> SpanConfig:
    """Lengths of spans counted in segments."""
    return replace(spans, kind="log_uniform", speech_min=1, speech_max=segments.longest)


def segment_example(document: Document, spans: SpanConfig, config: SegmentConfig, draws: np.ndarray) -> Example:
    """Alternate text and speech over the segments of a document whose words have no times.

    One segment is read and heard, heard and read, or one of the two alone, by the shares of the configuration: a
    transcript's place within its audio is not known.

    Args:
        document: with segments.
        spans: what `spans_of_segments` returned.
        draws: float64 in [0, 1), at least `draws_needed(segments, spans)` of them.
    """
    if len(document.segment_frames) > 1:
        bounds, speech = word_spans(len(document.segment_frames), spans, draws)
        found = _alternating(document, document.segment_frames, document.segment_tokens, bounds, speech)
        return Example(document, found)
    text, speech_span = [TEXT, 0, len(document.token_ids)], [SPEECH, 0, len(document.speech_ids)]
    ways = ((config.text_speech, [text, speech_span]), (config.speech_text, [speech_span, text]), (config.text, [text]))
    left = float(draws[0])
    for share, way in ways:
        if left < share:
            return Example(document, np.array(way, np.int64))
        left -= share
    return Example(document, np.array([speech_span if config.speech > 0 else text], np.int64))


def draws_needed(words: int, config: SpanConfig) -> int:
    """Enough draws for any example of so many words: two for the start, one for each span."""
    shortest = config.speech_min if config.kind == "log_uniform" else config.text_min / config.text_ratio  # words heard
    return 4 + math.ceil(words / max(1.0, min(shortest, shortest * config.text_ratio)))


def word_spans(words: int, config: SpanConfig, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut `words` words into alternating spans.

    Returns:
        bounds: int64 [k + 1], word indices from 0 to `words`, strictly increasing.
        speech: bool [k], which spans are speech.
    """
    draws = draws[: draws_needed(words, config)]
    speech = np.arange(len(draws) - 2) % 2 == (0 if draws[0] < config.speech_first else 1)  # alternating from draw 0
    lengths = _lengths(draws[2:], speech, config)  # [draws - 2], words of each span; more spans than needed
    # The first span is met somewhere within, so that not every document changes modality at the same places.
    lengths[0] = math.ceil(lengths[0] * (1.0 - draws[1]))
    ends = np.cumsum(lengths)  # words up to the end of each span
    count = int(np.searchsorted(ends, words, side="left")) + 1  # spans until the words are used up
    bounds = np.concatenate([[0], ends[:count]])
    bounds[-1] = words  # the last span ends with the document
    return bounds, speech[:count]


def _lengths(draws: np.ndarray, speech: np.ndarray, config: SpanConfig) -> np.ndarray:
    """int64 words of each span, at least 1."""
    ratio = config.text_ratio
    if config.kind == "uniform":
        text = config.text_min + np.floor(draws * (config.text_max + 1 - config.text_min))
        lengths = np.where(speech, np.floor(text / ratio + 0.5), text)  # rounded half up
    else:
        low, high = math.log(config.speech_min), math.log(config.speech_max + 1)
        heard = np.exp(low + draws * (high - low))  # log-uniform in [speech_min, speech_max + 1)
        lengths = np.floor(np.where(speech, heard, heard * ratio))
    return np.maximum(lengths, 1).astype(np.int64)
