"""Unit BPE, the paper's BPE baseline: SentencePiece over sequences of units, and shards of its pieces.

A unit is a character. `train` fits the model on a set's unit sequences; `convert` writes a set whose units are pieces,
which a baseline trains on with `patching.strategy: bpe`. A word and the silence behind it are encoded by themselves, so
that speech spans may still begin and end at any word; merges across words are lost by that. In such a set `word_frames`
counts pieces, and a word's span reaches to the next word's beginning.
"""

import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.documents.codec import Codec
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes

_FIRST_CHARACTER = 0x4E00
"""Units are mapped to one script's letters, so that SentencePiece never splits between them."""
_MAX_SEQUENCE = 1000


def _characters(units: np.ndarray) -> str:
    return "".join(map(chr, (units.astype(np.int64) + _FIRST_CHARACTER).tolist()))


def train(speech: ShardSet, out: Path, pieces: int = 1000, sequences: int = 100_000, seed: int = 0) -> "UnitBpe":
    """Fit on up to `sequences` stretches of at most 1,000 units; writes `out` (.model).

    Raises:
        UserError: no speech, or fewer pieces than the codebook has entries.
    """
    from sentencepiece import SentencePieceTrainer

    if speech.codec is None:
        raise UserError(f"{speech.path}: a text set has no units to train BPE on")
    if speech.codec.depth > 1:
        raise UserError(f"{speech.path}: unit BPE is of one codebook, {speech.codec.name} has {speech.codec.depth}")
    size = speech.codec.size
    if pieces <= size + 1:
        raise UserError(f"unit BPE: {pieces} pieces cannot hold a codebook of {size} entries")
    order = np.random.default_rng(seed).permutation(len(speech))

    def stretches() -> Iterator[str]:
        yield _characters(np.arange(size))  # every unit is a piece
        for i in order:
            ids = speech.get(int(i)).speech_ids
            for begin in range(0, len(ids), _MAX_SEQUENCE):
                yield _characters(ids[begin : begin + _MAX_SEQUENCE])

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=itertools.islice(stretches(), sequences + 1),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            max_sentence_length=4 * _MAX_SEQUENCE,
            max_sentencepiece_length=64,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"unit BPE: {pieces} pieces cannot be fitted on {len(speech)} documents ({error})") from error
    write_bytes(out, model.getvalue())
    return UnitBpe(out)


class UnitBpe:
    """A trained model. Raises UserError when the file is none."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            content = path.read_bytes()
            self._model = SentencePieceProcessor(model_proto=content)
        except (OSError, RuntimeError) as error:
            raise UserError(f"unit BPE {path}: cannot be read ({error})") from error
        self.size = int(self._model.vocab_size())
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def encode(self, units: np.ndarray) -> np.ndarray:
        """int16 [F] units -> int16 [P] pieces, P <= F."""
        return np.array(self._model.encode(_characters(units)) if len(units) else [], np.int16)

    def decode(self, pieces: np.ndarray) -> np.ndarray:
        """int16 [P] pieces -> int16 [F] units."""
        text = "".join(self._model.id_to_piece([int(p) for p in pieces])) if len(pieces) else ""
        return np.array([ord(ch) - _FIRST_CHARACTER for ch in text], np.int16)

    def lengths(self) -> list[int]:
        """Units that each piece stands for; 0 for the unknown piece, which no encoding holds."""
        return [
            0 if self._model.is_unknown(piece) or self._model.is_control(piece) else len(self._model.id_to_piece(piece))
            for piece in range(self.size)
        ]

    def convert(self, document: Document) -> Document:
        """The document with pieces for units; see the module for its spans."""
        begins = document.word_frames[:, 0]
        edges = [0, *begins.tolist(), len(document.speech_ids)]  # silence before the first word is a part too
        parts = [self.encode(document.speech_ids[a:b]) for a, b in itertools.pairwise(edges)]
        at = np.cumsum([0, *map(len, parts)])[1:]  # pieces before each word, and the end
        spans = np.stack([at[:-1], at[1:]], 1).astype(np.int32)
        return replace(
            document, speech_ids=np.concatenate(parts), word_frames=spans, piece_frames=np.zeros((0, 2), np.int32)
        )


def convert_set(speech: ShardSet, model: UnitBpe, out: Path, size_limit: int, compression: str) -> dict[str, Any]:
    """Write the set of pieces. Returns its manifest."""
    units = speech.codec
    assert units is not None, "a set of speech"
    digest = hashlib.sha256(f"{units.fingerprint} bpe {model.fingerprint}".encode()).hexdigest()[:16]
    codec = Codec(f"{units.name}+bpe", (model.size,), units.rate, digest)
    made = write_set(
        out,
        (model.convert(document) for document in speech),
        "speech",
        speech.tokenizer,
        codec,
        size_limit,
        compression,
        {
            "unit_bpe": {
                "pieces": model.size,
                "of_codebook": units.fingerprint,
                "units": int(speech.frames.sum()),
                "lengths": model.lengths(),
            }
        },
    )
    return made.manifest
