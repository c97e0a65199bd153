"""How much there is to compute in a row: tokens, units and visible (query, key) pairs, exactly or expected."""

from dataclasses import dataclass, fields

import numpy as np

from megatron_lst.config.schema import Config
from megatron_lst.patching.packed import pack_rows
from megatron_lst.patching.row import Row


@dataclass(frozen=True)
class Work:
    """Sizes that FLOPs follow from, for one row or, scaled, for anything else. Padding is in none of them.

    Attributes:
        tokens, units: raw tokens N and units U.
        global_pairs: (unit, unit) pairs of global attention.
        encoder_tokens, encoder_pairs: tokens of the encoder, and (token, token) pairs of its self-attention.
        patches, patch_pairs: units that the encoder pools, and their (unit, token) pairs.
        decoder_tokens, decoder_pairs: the same for the decoder's self-attention.
        read_units, cross_pairs: units that some decoder token sees, and (token, unit) pairs.
        text_positions: positions of the text head (`text_path: direct` only).

    A baseline has tokens, units and global_pairs alone.
    """

    tokens: float = 0.0
    units: float = 0.0
    global_pairs: float = 0.0
    encoder_tokens: float = 0.0
    encoder_pairs: float = 0.0
    patches: float = 0.0
    patch_pairs: float = 0.0
    decoder_tokens: float = 0.0
    decoder_pairs: float = 0.0
    read_units: float = 0.0
    cross_pairs: float = 0.0
    text_positions: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(getattr(self, f.name) * factor for f in fields(self)))


def row_work(config: Config, row: Row) -> Work:
    """Exact work of one row: every pair that a mask lets through, PAD units left out."""
    model, vocabulary = config.model, config.vocabulary
    packed = pack_rows([row], model.window, model.decoder_window_units, vocabulary.pad, multiple=1)
    real = packed.tokens != vocabulary.pad
    real_unit = real[packed.patch_start]
    common = {
        "tokens": float(real.sum()),
        "units": float(real_unit.sum()),
        "global_pairs": float((packed.unit_end - packed.unit_start)[real_unit].sum()),
    }
    if model.kind == "baseline":
        return Work(**common)
    speech = vocabulary.is_speech(packed.tokens)
    if model.text_path == "direct":
        encoded, decoded = speech, speech | (packed.tokens == vocabulary.speech_marker)
        patches = float(speech[packed.patch_start].sum())
    else:
        encoded, decoded, patches = real, real, common["units"]
    # Each decoder token reads units [cross_start, cross_end): +1 and -1 at the ends add up to > 0 where one is read.
    ends = np.zeros(row.units + 1, np.int64)
    np.add.at(ends, packed.cross_start[decoded], 1)
    np.add.at(ends, packed.cross_end[decoded], -1)
    return Work(
        **common,
        encoder_tokens=float(encoded.sum()),
        encoder_pairs=_pairs_among(encoded, packed.token_start),
        patches=patches,
        patch_pairs=float(encoded.sum()),
        decoder_tokens=float(decoded.sum()),
        decoder_pairs=_pairs_among(decoded, packed.token_start),
        read_units=float((np.cumsum(ends)[:-1] > 0).sum()),
        cross_pairs=float((packed.cross_end - packed.cross_start)[decoded].sum()),
        text_positions=float((real & ~decoded).sum()) if model.text_path == "direct" else 0.0,
    )


def _pairs_among(chosen: np.ndarray, start: np.ndarray) -> float:
    """Pairs (t, s) with start[t] <= s <= t, both chosen. bool [N], int [N]."""
    before = np.concatenate([[0], np.cumsum(chosen)])
    return float((before[1:] - before[start])[chosen].sum())


@dataclass(frozen=True)
class MixtureStatistics:
    """What a stream is made of, in raw tokens before patching (SPEC 7). The defaults are the paper's.

    Attributes:
        speech_frames_per_word, pieces_per_word, text_ratio: their quotient is the speech share of an interleaved
            document: 9.4 / (9.4 + 2 * 1.4) = 0.77.
        interleaved, text: weights of the two classes of documents.
        patch_length: mean speech tokens in a patch; 1 for a baseline.
        speech_span_tokens: mean speech tokens in a span, which sets how many `<s>` there are.
        documents_per_row: documents that share a row, of equal size.
    """

    speech_frames_per_word: float = 9.4
    pieces_per_word: float = 1.4
    text_ratio: float = 2.0
    interleaved: float = 1.0
    text: float = 2.0
    patch_length: float = 4.0
    speech_span_tokens: float = 94.0
    documents_per_row: float = 1.0

    @property
    def speech_share(self) -> float:
        """Speech in an interleaved document's raw tokens."""
        return self.speech_frames_per_word / (self.speech_frames_per_word + self.text_ratio * self.pieces_per_word)

    @property
    def interleaved_units(self) -> float:
        """Units of an interleaved document per raw token."""
        return self.speech_share / self.patch_length + 1.0 - self.speech_share

    @property
    def units_per_token(self) -> float:
        """Units per raw token of the whole mixture."""
        return (self.interleaved * self.interleaved_units + self.text) / (self.interleaved + self.text)


WORD_PATCH, GAP_PATCH = 5.8, 3.7
"""Mean frames of a word's and of a gap's patch, published."""
ALIGNED_MERGED = 9.4
"""Mean frames of a word with its gap, published."""
ALIGNED_SEPARATE = ALIGNED_MERGED / (1.0 + (ALIGNED_MERGED - WORD_PATCH) / GAP_PATCH)
"""Mean over words and gaps: 9.4 frames a word are one patch of 5.8 and (9.4 - 5.8) / 3.7 gaps; 4.76."""
ALIGNED_BPE = 5.0
"""Mean of patches that follow text pieces, published."""


def mean_patch_length(config: Config) -> float:
    """Expected speech tokens in a patch, from the strategy; truncation at span ends is neglected."""
    patching = config.patching
    if config.model.kind == "baseline" or patching.strategy in ("none", "bpe"):
        return 1.0
    if patching.granularity == "bpe":
        aligned = ALIGNED_BPE
    else:
        aligned = ALIGNED_SEPARATE if patching.silence == "separate" else ALIGNED_MERGED
    if patching.strategy == "curriculum":
        tau1, tau2 = config.curriculum_rows
        share = (tau1 + tau2) / 2 / (config.training.steps * config.training.global_batch)
    else:
        share = {"static": 0.0, "aligned": 1.0, "mixed": patching.mixed_probability}[patching.strategy]
    return 1.0 / (share / aligned + (1.0 - share) / patching.size)


def mixture_of(config: Config) -> MixtureStatistics:
    """The mixture that a configuration asks for; the paper's weights where it names no sources.

    Adaptation sources (`asr`, `tts`) count as interleaved: speech and its text in one document.
    """
    weights = {"interleaved": 0.0, "text": 0.0}
    for source in config.data.sources:
        weights["text" if source.kind == "text" else "interleaved"] += source.weight
    if not sum(weights.values()):
        weights = {"interleaved": 1.0, "text": 2.0}
    return MixtureStatistics(
        interleaved=weights["interleaved"],
        text=weights["text"],
        text_ratio=config.data.spans.text_ratio,
        patch_length=mean_patch_length(config),
    )


def expected_work(config: Config, mixture: MixtureStatistics | None = None) -> Work:
    """Work of an average full row of U units under a mixture, without looking at data.

    A row's units are shared between interleaved and text documents as the mixture says; documents have equal size.
    """
    mixture = mixture or mixture_of(config)
    total = mixture.interleaved * mixture.interleaved_units + mixture.text
    speech_rows = mixture.interleaved * mixture.interleaved_units / total
    return _document_rows(config, mixture, True) * speech_rows + _document_rows(config, mixture, False) * (
        1.0 - speech_rows
    )


def _document_rows(config: Config, mixture: MixtureStatistics, interleaved: bool) -> Work:
    """Work of a row that holds documents of one class alone."""
    model, documents = config.model, mixture.documents_per_row
    units = config.data.units / documents
    tokens = units / (mixture.interleaved_units if interleaved else 1.0)
    common = Work(tokens=tokens, units=units, global_pairs=_causal_pairs(units, units))
    if model.kind == "baseline":
        return common * documents
    speech = tokens * mixture.speech_share if interleaved else 0.0
    if model.text_path == "direct":
        markers = speech / mixture.speech_span_tokens
        encoded, decoded, patches = speech, speech + markers, speech / mixture.patch_length
        # Tokens of a document's other modality take their share of the window without being attended.
        window = model.window * speech / tokens if model.window < tokens else speech
    else:
        encoded = decoded = tokens
        patches, window = units, float(model.window)
    read = units if model.decoder_window_units > 1 and decoded else min(units, patches + decoded - encoded)
    visible = _causal_pairs(units, model.decoder_window_units) / units
    work = Work(
        encoder_tokens=encoded,
        encoder_pairs=_causal_pairs(encoded, window),
        patches=patches,
        patch_pairs=encoded,
        decoder_tokens=decoded,
        decoder_pairs=_causal_pairs(decoded, window),
        read_units=read,
        cross_pairs=decoded * visible,
        text_positions=tokens - decoded if model.text_path == "direct" else 0.0,
    )
    return (common + work) * documents


def _causal_pairs(length: float, window: float) -> float:
    """Pairs (t, s) with t - window < s <= t in a document of `length`."""
    ramp = min(length, window)
    return ramp * (ramp + 1) / 2 + max(length - window, 0.0) * window
