"""How much there is to compute in a row: tokens, units and visible (query, key) pairs, exactly or expected."""

from dataclasses import dataclass, fields, replace

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
    real = packed.tokens != vocabulary.pad  # [N]
    real_unit = real[packed.patch_start]  # [U]
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
    before = np.concatenate([[0], np.cumsum(chosen)])  # [N + 1], chosen tokens in front of each
    return float((before[1:] - before[start])[chosen].sum())


@dataclass(frozen=True)
class MixtureStatistics:
    """What a stream is made of, in raw tokens before patching (SPEC 7). The defaults are the paper's.

    Attributes:
        speech_frames_per_word, pieces_per_word, text_ratio: their quotient is the speech share of an interleaved
            document: 9.4 / (9.4 + 2 * 1.4) = 0.77.
        depth: Q, tokens of a frame of speech. Weights count a frame as one.
        interleaved, text, speech: weights of the classes of documents; `speech`: without text.
        patch_length: mean speech tokens in a patch; 1 for a baseline.
        speech_span_tokens: mean speech tokens in a span, which sets how many `<s>` there are.
        documents_per_row: documents that share a row, of equal size.
    """

    speech_frames_per_word: float = 9.4
    pieces_per_word: float = 1.4
    text_ratio: float = 2.0
    depth: int = 1
    interleaved: float = 1.0
    text: float = 2.0
    speech: float = 0.0
    patch_length: float = 4.0
    speech_span_tokens: float = 94.0
    documents_per_row: float = 1.0

    @property
    def speech_share(self) -> float:
        """Speech in an interleaved document's raw tokens, where a frame counts as one."""
        return self.speech_frames_per_word / (self.speech_frames_per_word + self.text_ratio * self.pieces_per_word)

    @property
    def interleaved_units(self) -> float:
        """Units of an interleaved document per raw token."""
        return self.speech_share * self.frame_units + 1.0 - self.speech_share

    @property
    def frame_units(self) -> float:
        """Units of a frame of speech."""
        return self.depth / self.patch_length

    @property
    def units_per_token(self) -> float:
        """Units per raw token of the whole mixture."""
        units = self.interleaved * self.interleaved_units + self.text + self.speech * self.frame_units
        return units / (self.interleaved + self.text + self.speech)


WORD_PATCH, GAP_PATCH = 5.8, 3.7
"""Mean frames of a word's and of a gap's patch, published."""
ALIGNED_MERGED = 9.4
"""Mean frames of a word with its gap, published."""
ALIGNED_SEPARATE = ALIGNED_MERGED / (1.0 + (ALIGNED_MERGED - WORD_PATCH) / GAP_PATCH)
"""Mean over words and gaps: 9.4 frames a word are one patch of 5.8 and (9.4 - 5.8) / 3.7 gaps; 4.76."""
ALIGNED_BPE = 5.0
"""Mean of patches that follow text pieces, published."""


PAPER_RATE = 25
"""Frames a second of the published lengths."""


def mean_patch_length(config: Config) -> float:
    """Expected speech tokens in a patch, from the strategy; truncation at span ends is neglected."""
    patching = config.patching
    if config.model.kind == "baseline" or patching.strategy in ("none", "bpe"):
        return 1.0
    if patching.granularity == "bpe":
        aligned = ALIGNED_BPE
    else:
        aligned = ALIGNED_SEPARATE if patching.silence == "separate" else ALIGNED_MERGED
    aligned *= _tokens_of_a_frame(config)
    if patching.strategy == "curriculum":
        tau1, tau2 = config.curriculum_rows
        share = (tau1 + tau2) / 2 / (config.training.steps * config.training.global_batch)
    else:
        share = {"static": 0.0, "aligned": 1.0, "mixed": patching.mixed_probability}[patching.strategy]
    return 1.0 / (share / aligned + (1.0 - share) / patching.size)


def _tokens_of_a_frame(config: Config) -> float:
    """Speech tokens for each one of the paper's, of the same seconds."""
    return float(config.vocabulary.depth * config.vocabulary.rate / PAPER_RATE)


def mixture_of(config: Config) -> MixtureStatistics:
    """The mixture that a configuration asks for; the paper's weights where it names no sources.

    Adaptation sources (`asr`, `tts`) count as interleaved: speech and its text in one document.
    """
    weights = {"interleaved": 0.0, "text": 0.0, "speech": 0.0}
    for source in config.data.sources:
        weights[source.kind if source.kind in ("text", "speech") else "interleaved"] += source.weight
    if not sum(weights.values()):
        weights = {"interleaved": 1.0, "text": 2.0}
    scale, paper = _tokens_of_a_frame(config), MixtureStatistics()
    return MixtureStatistics(
        **weights,
        speech_frames_per_word=paper.speech_frames_per_word * scale / config.vocabulary.depth,
        depth=config.vocabulary.depth,
        text_ratio=config.data.spans.text_ratio,
        patch_length=mean_patch_length(config),
        speech_span_tokens=paper.speech_span_tokens * scale,
    )


def speech_second(config: Config) -> Work:
    """Work of a second of speech, in rows that hold one document of speech alone (markers left out)."""
    row = expected_work(config, replace(mixture_of(config), interleaved=0.0, text=0.0, speech=1.0))
    return row * (config.vocabulary.depth * float(config.vocabulary.rate) / row.tokens)


def row_speech_seconds(config: Config) -> float:
    """Seconds of speech in an average full row."""
    mixture = mixture_of(config)
    spoken = mixture.interleaved * mixture.speech_share + mixture.speech
    frames = spoken / (mixture.interleaved + mixture.text + mixture.speech) / mixture.units_per_token
    return config.data.units * frames / float(config.vocabulary.rate)


def flattened(config: Config) -> Config:
    """The same trunk over the same tokens without patches: the baseline, each speech token a unit."""
    return replace(
        config, model=replace(config.model, kind="baseline"), patching=replace(config.patching, strategy="none")
    )


def expected_work(config: Config, mixture: MixtureStatistics | None = None) -> Work:
    """Work of an average full row of U units under a mixture, without looking at data.

    A row's units are shared between interleaved and text documents as the mixture says; documents have equal size.
    """
    mixture = mixture or mixture_of(config)
    classes = (
        (mixture.speech_share, mixture.interleaved * mixture.interleaved_units),
        (0.0, mixture.text),
        (1.0, mixture.speech * mixture.frame_units),
    )
    total = sum(units for _, units in classes)
    work = Work()
    for share, units in classes:
        if units:
            work += _document_rows(config, mixture, share) * (units / total)
    return work


def _document_rows(config: Config, mixture: MixtureStatistics, speech_share: float) -> Work:
    """Work of a row that holds documents of one class alone. `speech_share`: of their raw tokens."""
    model, documents = config.model, mixture.documents_per_row
    units = config.data.units / documents  # of one document
    raw = units / (speech_share * mixture.frame_units + 1.0 - speech_share)  # raw tokens: a frame counts as one
    speech = raw * speech_share * mixture.depth  # Q tokens a frame
    tokens = speech + raw * (1.0 - speech_share)
    common = Work(tokens=tokens, units=units, global_pairs=_causal_pairs(units, units))
    if model.kind == "baseline":
        return common * documents
    if model.text_path == "direct":
        markers = speech / mixture.speech_span_tokens  # one `<s>` a span
        encoded, decoded, patches = speech, speech + markers, speech / mixture.patch_length
        # Tokens of a document's other modality take their share of the window without being attended.
        window = model.window * speech / tokens if model.window < tokens else speech
    else:
        encoded = decoded = tokens
        patches, window = units, float(model.window)
    read = units if model.decoder_window_units > 1 and decoded else min(units, patches + decoded - encoded)
    visible = _causal_pairs(units, model.decoder_window_units) / units  # units that a token reads, on average
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
    ramp = min(length, window)  # the first tokens see fewer than a window
    return ramp * (ramp + 1) / 2 + max(length - window, 0.0) * window
