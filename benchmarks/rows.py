"""Rows of the paper's mixture made of random tokens, every document of one pinned length (SPEC 7).

Of three documents one is interleaved and two are text, all of the same number of raw tokens: 1 : 2 in raw tokens.  An
interleaved document alternates 28 text pieces and 94 speech units, 20 and 10 words: 0.77 of it is speech.  A document
that a row's end cuts goes on in the next row, with its BOS and marker again, so that no length is made shorter than by
the rows themselves.
"""

from collections.abc import Iterator

import numpy as np

from megatron_lst.config.schema import Config
from megatron_lst.patching.chunks import chunk_of_tokens
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.patching.strategies import static_patches
from megatron_lst.vocabulary import Vocabulary

TEXT_SPAN, SPEECH_SPAN = 28, 94


def _document(vocabulary: Vocabulary, random: np.random.Generator, interleaved: bool, length: int) -> np.ndarray:
    """int32 [length]: BOS, spans with their markers or text alone, EOS."""
    tokens = random.integers(3, vocabulary.text_size, length).astype(np.int32)
    if interleaved:
        period = TEXT_SPAN + SPEECH_SPAN + 2
        place = (np.arange(length) + int(random.integers(period))) % period
        spoken = place > TEXT_SPAN + 1
        tokens[spoken] = random.integers(0, vocabulary.speech_size, int(spoken.sum())) + vocabulary.text_size
        tokens[place == 0], tokens[place == TEXT_SPAN + 1] = vocabulary.text_marker, vocabulary.speech_marker
        if spoken[1]:
            tokens[1] = vocabulary.speech_marker
    tokens[0], tokens[-1] = vocabulary.bos, vocabulary.eos
    return tokens


def synthetic_rows(config: Config, document_tokens: int, seed: int = 0) -> Iterator[Row]:
    """Endless rows of exactly `data.units` units, no padding in them.

    Args:
        config: model kind, vocabulary, units and patch size are read; patches are static.
        document_tokens: raw tokens of every document, BOS and EOS included; at least 8.
    """
    vocabulary, units = config.vocabulary, config.data.units
    patch = config.patching.size if config.model.kind == "lst" else 1
    random = np.random.default_rng(seed)
    document, index = 0, 0
    rest = np.zeros(0, np.int32)
    chunks: list[Chunk] = []
    room = units
    while True:
        if len(rest) == 0:
            rest = _document(vocabulary, random, document % 3 == 0, document_tokens)
            document += 1
        whole = chunk_of_tokens(rest, vocabulary, lambda begin, end: static_patches(end - begin, patch))
        count = min(room, len(whole.patch_length))
        taken = int(whole.patch_length[:count].sum())
        parts = (whole.patch_length[:count], whole.closes_late[:count])
        chunks.append(Chunk(rest[:taken], *parts, f"synthetic-{document}"))
        room -= count
        rest = rest[taken:]
        if len(rest):
            again = [vocabulary.bos]
            if vocabulary.is_speech(rest[:1])[0]:
                again.append(vocabulary.speech_marker)
            rest = np.concatenate([np.array(again, np.int32), rest])
        if room == 0:
            yield assemble_row(chunks, units, vocabulary, index)
            chunks, room, index = [], units, index + 1
