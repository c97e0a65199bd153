"""Codes in, sound or codes out, for commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.files import replacing
from megatron_lst.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megatron_lst.inference.vocoder import Vocoder


def read_codes(given: str, vocabulary: Vocabulary) -> np.ndarray:
    """Codes of a prompt, numbers frame after frame or a .npy file, as speech ids: int64 [F, Q].

    Raises:
        UserError: not that; says what was expected.
    """
    depth, sizes = vocabulary.depth, vocabulary.codebook_sizes
    if given.endswith(".npy"):
        try:
            found = np.load(given, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"--units {given}: cannot be read ({error})") from None
        if found.dtype.kind not in "iu" or found.ndim > 2 or (found.ndim == 2 and found.shape[1] != depth):
            raise UserError(f"--units {given}: {found.dtype} {list(found.shape)}; expected whole numbers [F, {depth}]")
    else:
        if not all(u.isdigit() for u in given.split()):
            raise UserError(f"--units {given!r}: expected whole numbers, such as '3 17 17 4'")
        found = np.array([int(u) for u in given.split()], np.int64)
    if not found.size or found.size % depth:
        raise UserError(f"--units {given!r}: {found.size} codes; expected frames of {depth}")
    codes = found.reshape(-1, depth).astype(np.int64)
    if ((codes < 0) | (codes >= sizes)).any():
        frame, book = (int(x) for x in np.argwhere((codes < 0) | (codes >= sizes))[0])
        raise UserError(
            f"--units {given!r}: code {int(codes[frame, book])} in frame {frame}: codebook {book} has numbers in "
            f"[0, {sizes[book]})"
        )
    return codes + vocabulary.offsets


def write_codes(out: Path, speech_ids: np.ndarray, vocabulary: Vocabulary) -> Path:
    """Speech ids [F x Q] as codes, int64 [F, Q], in a .npy file beside where sound was asked for; its path."""
    path = out.with_suffix(".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        np.save(file, speech_ids.reshape(-1, vocabulary.depth) - vocabulary.offsets)
    return path


def speak(voice: "Vocoder", speech_ids: np.ndarray, out: Path, before: Sequence[int] | np.ndarray = ()) -> None:
    """The response's speech tokens as sound, after the prompt's own where it was speech."""
    from megatron_lst.inference.vocoder import write_wav

    write_wav(out, voice(np.array([*before, *speech_ids])), voice.rate)


def open_vocoder(vocabulary: Vocabulary, codebook: Path | None, vocoder: Path | None) -> "Vocoder":
    """HiFi-GAN where a folder is given, else the codebook's spectral inversion. Raises UserError without either."""
    from megatron_lst.inference.hifigan import HifiGanVocoder
    from megatron_lst.inference.vocoder import SpectralVocoder

    if vocabulary.depth > 1:
        raise UserError(
            f"no vocoder here makes sound of {vocabulary.depth} codebooks; `lst generate --out FILE.npy` "
            "writes the codes for the codec's own decoder"
        )
    if vocoder is not None:
        return HifiGanVocoder(vocoder, vocabulary.speech_size, frame_rate=vocabulary.rate)
    if codebook is None:
        raise UserError("sound needs --codebook (spectral inversion) or --vocoder (HiFi-GAN over the codebook's ids)")
    return SpectralVocoder.from_codebook(codebook)
