"""Document: one recording, chapter, episode or text, as shards hold it (contract 1).

A document is long (up to about 10 minutes of speech): attention stays inside documents, so short clips would
leave long context untrained (SPEC 7).  Speech documents have speech tokens and words; text documents have token ids
only.
"""

from dataclasses import dataclass, field

import numpy as np

from megatron_lst.errors import DamagedDataError

SCHEMA_VERSION = 3
"""Raised whenever a column changes its meaning or is added; readers refuse versions that they do not know. A set is
written as the oldest version that can say what it holds: 1 of 25 Hz, one codebook and words for all speech that is
transcribed; 2 of other codecs, or with segments; 3 of conversations."""

COLUMNS: dict[str, str] = {
    "id": "str",
    "source": "str",
    "speaker": "str",
    "license": "str",
    "text": "str",
    "units": "ndarray:int16",
    "token_ids": "ndarray:int32",
    "word_frames": "ndarray:int32",
    "word_tokens": "ndarray:int32",
    "word_chars": "ndarray:int32",
    "word_scores": "ndarray:float32",
    "piece_frames": "ndarray:int32",
}
"""Columns and what they hold. In the file an array is its little-endian bytes (MDS refuses empty arrays), of shape
[n, 2] for the spans and [n] for the others. No pickled column, ever. `units` is as wide and deep as its codec says."""
SEGMENT_COLUMNS = {"segment_frames": "ndarray:int32", "segment_tokens": "ndarray:int32"}
"""Columns that version 2 has more."""
TURN_COLUMNS = {"turn_spans": "ndarray:int32", "turn_learnt": "ndarray:int8", "turn_chars": "ndarray:int32"}
"""Columns that version 3 has more."""
PLAIN, TEXT, SPEECH = 0, 1, 2
"""Kinds of span: text without a marker (text documents), text after `<t>`, speech after `<s>`."""
_FIELDS = {"units": "speech_ids"}
"""Columns whose field of Document has another name."""


def _empty(dtype: type, *shape: int) -> np.ndarray:
    return np.zeros(shape, dtype)


@dataclass(frozen=True)
class Document:
    """One document. F frames (of Q speech tokens), P text pieces, W words, or G segments where words have no times; a
    conversation has C spans of its turns instead.

    Attributes:
        id: unique within its shard set.
        source, speaker, license: where it comes from and what may be done with it.
        text: the original text, untouched.
        speech_ids: int16 (int32 where S needs it) [F], or [F, Q] of a codec with Q codebooks, ids in [0, S), see
            `codec`; empty for a text document. The column `units`.
        token_ids: int32 [P], the tokenizer's ids of `text`, without BOS and EOS.
        word_frames: int32 [W, 2], half-open frame span of each word (SPEC 6 rounding); non-overlapping,
            increasing, never empty. Frames between words are silence.
        word_tokens: int32 [W, 2], half-open span into token_ids; together they cover [0, P) in order.
        word_chars: int32 [W, 2], half-open span into `text`.
        word_scores: float32 [W], the aligner's confidence, higher is better (NaN where it gives none).
        piece_frames: int32 [P, 2], frame span of each text piece, or [0, 2] when the aligner gives none.
        segment_frames: int32 [G, 2], half-open frame span of each piece of the recording that has a transcript, as
            `word_frames`; only where there are no words. Speech without a transcript has none.
        segment_tokens: int32 [G, 2], the transcript's span into token_ids; together they cover [0, P) in order.
        turn_spans: int32 [C, 3], of a conversation (SPEC 7): kind (PLAIN, TEXT, SPEECH), begin and end of each stretch,
            text in pieces, speech in frames; together those of text cover [0, P) and those of speech [0, F), in order.
            Its text holds roles and ends of turns as well.
        turn_learnt: int8 [C], 1 where the assistant says it: those are the tokens with a loss.
        turn_chars: int32 [C, 2], half-open span of each stretch into `text`; of speech, its transcript's.
    """

    id: str
    source: str
    text: str
    token_ids: np.ndarray
    speaker: str = ""
    license: str = ""
    speech_ids: np.ndarray = field(default_factory=lambda: _empty(np.int16, 0))
    word_frames: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))
    word_tokens: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))
    word_chars: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))
    word_scores: np.ndarray = field(default_factory=lambda: _empty(np.float32, 0))
    piece_frames: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))
    segment_frames: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))
    segment_tokens: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))
    turn_spans: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 3))
    turn_learnt: np.ndarray = field(default_factory=lambda: _empty(np.int8, 0))
    turn_chars: np.ndarray = field(default_factory=lambda: _empty(np.int32, 0, 2))

    @property
    def has_speech(self) -> bool:
        return len(self.speech_ids) > 0

    @property
    def depth(self) -> int:
        """Q, speech tokens of a frame."""
        return 1 if self.speech_ids.ndim == 1 else int(self.speech_ids.shape[1])

    @property
    def raw_tokens(self) -> int:
        """Size of this document in a mixture's weights, before interleaving and patching.

        For speech this is an estimate of what an interleaved visit yields (2/3 of the words as text, 1/3 as
        speech), and all of a conversation; mixing itself counts realised tokens. A frame counts as one, whatever its
        codebooks.
        """
        if len(self.turn_spans):
            return len(self.token_ids) + len(self.speech_ids)
        if not len(self.token_ids):
            return len(self.speech_ids)
        return len(self.token_ids) if not self.has_speech else (2 * len(self.token_ids) + len(self.speech_ids)) // 3

    def check(self, speech_size: int | None = None, text_size: int | None = None) -> None:
        """Refuse a document that breaks the schema.

        Raises:
            DamagedDataError: names the document and the first field that is wrong.
        """

        def refuse(what: str) -> None:
            raise DamagedDataError(f"document {self.id!r} of source {self.source!r}: {what}")

        frames, pieces, words = len(self.speech_ids), len(self.token_ids), len(self.word_frames)
        if not pieces and not frames:
            refuse("is empty: neither text pieces nor speech tokens")
        segments, turns = len(self.segment_frames), len(self.turn_spans)
        if frames and pieces and not words and not segments and not turns:
            refuse("has speech tokens but no aligned words")
        if words and segments:
            refuse("has words and segments; where words have times, those of segments are not needed")
        for name, expected in (
            ("word_frames", (words, 2)),
            ("word_tokens", (words, 2)),
            ("word_chars", (words, 2)),
            ("word_scores", (words,)),
            ("segment_tokens", (segments, 2)),
            ("turn_spans", (turns, 3)),
            ("turn_learnt", (turns,)),
            ("turn_chars", (turns, 2)),
        ):
            if getattr(self, name).shape != expected:
                refuse(f"{name} has shape {getattr(self, name).shape}, expected {expected}")
        if turns and (words or segments):
            refuse("has turns, and words or segments, which a conversation has not")
        if turns and (fault := self._turn_fault()):
            refuse(fault)
        if self.piece_frames.shape not in ((0, 2), (pieces, 2)):
            refuse(f"piece_frames has shape {self.piece_frames.shape}, expected (0, 2) or ({pieces}, 2)")
        for kind in ("word", "segment"):
            spans, tokens = getattr(self, f"{kind}_frames"), getattr(self, f"{kind}_tokens")
            if not len(spans):
                continue
            begin, end = spans[:, 0], spans[:, 1]
            if begin[0] < 0 or end[-1] > frames or (end <= begin).any() or (begin[1:] < end[:-1]).any():
                refuse(f"{kind}_frames must be increasing, non-empty and within [0, {frames})")
            begin, end = tokens[:, 0], tokens[:, 1]
            if begin[0] != 0 or end[-1] != pieces or (begin[1:] != end[:-1]).any() or (end <= begin).any():
                refuse(f"{kind}_tokens must cover [0, {pieces}) in order, every {kind} at least one piece")
        if (
            speech_size is not None
            and frames
            and not (0 <= self.speech_ids.min() <= self.speech_ids.max() < speech_size)
        ):
            refuse(f"speech_ids must be in [0, {speech_size}), found {self.speech_ids.min()}..{self.speech_ids.max()}")
        if text_size is not None and pieces and not (0 <= self.token_ids.min() <= self.token_ids.max() < text_size):
            refuse(f"token_ids must be in [0, {text_size})")

    def _turn_fault(self) -> str:
        """What is wrong with the spans of a conversation; empty: nothing."""
        kind, begin, end = self.turn_spans.T.tolist()
        at = {True: 0, False: 0}  # of speech, of text
        for i, (one, first, last) in enumerate(zip(kind, begin, end, strict=True)):
            heard, before = one == SPEECH, kind[i - 1] if i else PLAIN
            if (
                one not in (PLAIN, TEXT, SPEECH)
                or (heard and before == SPEECH)
                or (one == TEXT) != (not heard and before == SPEECH)
            ):
                return f"turn_spans: stretch {i} of kind {one} cannot follow one of kind {before}"
            if first != at[heard] or last <= first:
                return f"turn_spans: stretch {i} is [{first}, {last}), expected it to begin at {at[heard]}"
            at[heard] = last
        if (at[False], at[True]) != (len(self.token_ids), len(self.speech_ids)):
            return f"turn_spans end at {at[False]} pieces and {at[True]} frames, not at the document's end"
        if not self.turn_learnt.any():
            return "turn_learnt: the assistant says nothing"
        return ""

    def to_sample(self) -> dict[str, object]:
        """One entry per name in COLUMNS, SEGMENT_COLUMNS and TURN_COLUMNS."""
        return {name: getattr(self, _FIELDS.get(name, name)) for name in (*COLUMNS, *SEGMENT_COLUMNS, *TURN_COLUMNS)}

    @classmethod
    def from_sample(cls, sample: dict[str, object]) -> "Document":
        """The document of a sample of any version."""
        names = (*COLUMNS, *(name for name in (*SEGMENT_COLUMNS, *TURN_COLUMNS) if name in sample))
        return cls(**{_FIELDS.get(name, name): sample[name] for name in names})  # type: ignore[arg-type]
