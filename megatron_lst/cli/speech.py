"""Text and audio in and out of ids, for commands: tokenizers and the codebook of data preparation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import UserError


def text_encoder(spec: str) -> tuple[Callable[[str, bool], list[int]], dict[str, Any]]:
    """(encode(text, continuing), {"fingerprint", "name"}) of a tokenizer."""
    from lst_prep.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(spec)

    def encode(text: str, continuing: bool) -> list[int]:
        if not continuing:
            return tokenizer.encode(text)
        return [piece for word in text.split() for piece in tokenizer.encode_word(word, False)]

    return encode, {"fingerprint": tokenizer.info.fingerprint, "name": tokenizer.info.name}


def text_decoder(spec: str) -> Callable[[list[int]], str]:
    from lst_prep.tokenizer import load_tokenizer

    return load_tokenizer(spec).decode


def audio_encoder(codebook: Path, hubert: str = "") -> tuple[Callable[[Path], np.ndarray], dict[str, Any]]:
    """(audio file -> speech ids, {"fingerprint"}) of a codebook with its extractor.

    Args:
        hubert: path of the model where the codebook is of HuBERT features.

    Raises:
        UserError: the codebook belongs to another extractor.
    """
    from lst_prep.audio import load
    from lst_prep.config import AudioConfig, UnitsConfig
    from lst_prep.rejection import Rejection
    from lst_prep.units import Codebook, make_extractor

    book = Codebook.load(codebook)
    extractor = make_extractor(UnitsConfig(extractor=book.extractor, model=hubert, rate=str(book.rate)))
    book.require(extractor.name, extractor.fingerprint, extractor.rate)
    accept = AudioConfig(min_seconds=float(1 / book.rate))

    def encode(path: Path) -> np.ndarray:
        try:
            audio = load(path, None, None, accept)
        except Rejection as rejection:
            raise UserError(f"{path}: {rejection}") from None
        return book.encode(extractor.features([audio.samples])[0])

    return encode, {"fingerprint": book.fingerprint}
