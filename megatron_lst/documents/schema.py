"""Document: one recording, chapter, episode or text, as shards hold it (contract 1).

A document is long (up to about 10 minutes of speech): attention stays inside documents, so short clips would
leave long context untrained (SPEC 7).  Speech documents have speech tokens and words; text documents have token ids
only.
"""

from dataclasses import dataclass, field

import numpy as np

from megatron_lst.errors import DamagedDataError

SCHEMA_VERSION = 2
"""Raised whenever a column changes its meaning; readers refuse versions that they do not know. What version 1 can say
(25 Hz, one codebook, words for all speech that is transcribed) is still written as version 1."""

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
_FIELDS = {"units": "speech_ids"}
"""Columns whose field of Document has another name."""


def _empty(dtype: type, *shape: int) -> np.ndarray:
    return np.zeros(shape, dtype)


@dataclass(frozen=True)
class Document:
    """One document. F frames (of Q speech tokens), P text pieces, W words, or G segments where words have no times.

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
        speech); mixing itself counts realised tokens. A frame counts as one, whatever its codebooks.
        """
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
        segments = len(self.segment_frames)
        if frames and pieces and not words and not segments:
            refuse("has speech tokens but no aligned words")
        if words and segments:
            refuse("has words and segments; where words have times, those of segments are not needed")
        for name, expected in (
            ("word_frames", (words, 2)),
            ("word_tokens", (words, 2)),
            ("word_chars", (words, 2)),
            ("word_scores", (words,)),
            ("segment_tokens", (segments, 2)),
        ):
            if getattr(self, name).shape != expected:
                refuse(f"{name} has shape {getattr(self, name).shape}, expected {expected}")
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

    def to_sample(self) -> dict[str, object]:
        """One entry per name in COLUMNS and SEGMENT_COLUMNS."""
        return {name: getattr(self, _FIELDS.get(name, name)) for name in (*COLUMNS, *SEGMENT_COLUMNS)}

    @classmethod
    def from_sample(cls, sample: dict[str, object]) -> "Document":
        """The document of a sample of either version."""
        names = (*COLUMNS, *(name for name in SEGMENT_COLUMNS if name in sample))
        return cls(**{_FIELDS.get(name, name): sample[name] for name in names})  # type: ignore[arg-type]
