"""Text and audio in and out of ids, for commands: tokenizers and the codebook of data preparation."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_lst.errors import UserError

if TYPE_CHECKING:
    from megatron_lst.inference import Export


def text_encoder(spec: str) -> tuple[Callable[[str, bool], list[int]], dict[str, Any]]:
    """(encode(text, continuing), {"fingerprint", "name"}) of a tokenizer."""
    from lst_prep.tokenizer import load_tokenizer, plain_encoder

    tokenizer = load_tokenizer(spec)
    return plain_encoder(tokenizer), {"fingerprint": tokenizer.info.fingerprint, "name": tokenizer.info.name}


def text_decoder(spec: str) -> Callable[[list[int]], str]:
    from lst_prep.tokenizer import load_tokenizer

    return load_tokenizer(spec).decode


def audio_aligner(
    aligner: str, codebook: Path, model: str = "", tokenizer: str | None = None
) -> tuple[Callable[[Path, str, int], tuple[list[list[int]], list[list[int]] | None]], dict[str, Any]]:
    """(align(audio file, text, frames) -> frames of words and of text pieces, {"fingerprint"}) of an aligner.

    Args:
        aligner, model: `align.aligner` and `align.model` of data preparation.
        codebook: says how many frames a second has.
        tokenizer: gives the text pieces; None, or an aligner without times of letters: no frames of pieces.

    Raises:
        UserError: no such aligner; for a file: its words cannot be placed.
    """
    from lst_prep.align import Piece, make_aligner
    from lst_prep.audio import load
    from lst_prep.config import AlignConfig, AudioConfig
    from lst_prep.join import piece_frames, words_in_frames
    from lst_prep.rejection import Rejection
    from lst_prep.tokenizer import encode_words, load_tokenizer
    from lst_prep.transcript import normalise
    from lst_prep.units import Codebook

    if aligner not in ("pocketsphinx", "ctc"):
        raise UserError(f"--aligner {aligner!r}: expected pocketsphinx or ctc")
    config = AlignConfig(aligner=aligner, model=model)
    found, pieces_of = make_aligner(config), load_tokenizer(tokenizer) if tokenizer else None
    rate = Codebook.load(codebook).rate
    accept = AudioConfig(min_seconds=float(1 / rate))

    def align(path: Path, text: str, frames: int) -> tuple[list[list[int]], list[list[int]] | None]:
        try:
            samples = load(path, None, None, accept).samples
            (aligned,) = found.align_batch([Piece(samples, normalise(text, config.numbers))])
            if isinstance(aligned, Rejection):
                raise aligned
            spans, chars, _, letters = words_in_frames(aligned, frames, rate)
            if pieces_of is None or not letters:
                return spans.tolist(), None
            ids, word_tokens = encode_words(pieces_of, [text[a:b] for a, b in chars])
        except Rejection as rejection:
            raise UserError(f"{path.name}: {rejection}") from None
        ends = [time * float(rate) for time in letters]
        return spans.tolist(), piece_frames(pieces_of, ids, word_tokens, spans, ends).tolist()

    return align, {"fingerprint": found.fingerprint}


def audio_encoder(codebook: Path, model: str = "") -> tuple[Callable[[Path], np.ndarray], dict[str, Any]]:
    """(audio file -> speech ids, {"fingerprint"}) of a codebook with its extractor, in the settings that its file says.

    Args:
        model: path of the model where the codebook is of HuBERT or Whisper features, such as `Export.units_model`;
            empty: of Whisper, the encoder that comes with the repository.

    Raises:
        UserError: the codebook belongs to another extractor.
    """
    from lst_prep.audio import load
    from lst_prep.config import AudioConfig
    from lst_prep.rejection import Rejection
    from lst_prep.units import Codebook
    from lst_prep.units.opening import extractor_of

    book = Codebook.load(codebook)
    extractor = extractor_of(book, model)
    accept = AudioConfig(min_seconds=float(1 / book.rate))

    def encode(path: Path) -> np.ndarray:
        try:
            audio = load(path, None, None, accept)
        except Rejection as rejection:
            raise UserError(f"{path}: {rejection}") from None
        return book.units(extractor, [audio.samples])[0]

    return encode, {"fingerprint": book.fingerprint}


def codebook_of(export: "Export", given: Path | None) -> Path | None:
    """The codebook to use with an exported model: the given one, compared, or its own; None where it has none.

    Raises:
        UserError: another codebook than the one that the model was trained with.
    """
    from lst_prep.units import Codebook

    if given is None:
        return export.codebook
    export.check_fingerprints(codebook=Codebook.load(given).fingerprint)
    _tell_unchecked(export, "codebook", given)
    return given


def tokenizer_of(export: "Export", given: str | None) -> str | None:
    """The same for the text tokenizer: a file, or the name that the export gives it; None where it gives none.

    Raises:
        UserError: another tokenizer than the one that the model was trained with.
    """
    spec = given or export.tokenizer
    if spec is not None:
        export.check_fingerprints(tokenizer=text_encoder(spec)[1]["fingerprint"])
        _tell_unchecked(export, "tokenizer", spec)
    return spec


def require_tokenizer(export: "Export", given: str | None) -> str:
    """The same. Raises UserError where neither the user nor the export names one."""
    spec = tokenizer_of(export, given)
    if spec is None:
        raise UserError("give --tokenizer: the export does not name one")
    return spec


def _tell_unchecked(export: "Export", what: str, given: Path | str) -> None:
    if not (export.metadata.get(what) or {}).get("fingerprint"):
        print(f"{export.folder} does not say which {what} it was trained with: {given} is not checked", file=sys.stderr)
