"""The rows of a micro-batch as the model takes them, still on the host: every axis cut out, one buffer to copy.

N tokens packed end to end, P = b*U units.  Under `text_path: patch` encoder and decoder run over all N tokens.  Under
`direct` they run over shorter axes of their own, cut out here so that every mask is still an interval: the encoder over
speech tokens, the decoder over speech-mode positions (`<s>` and speech), the text head over text-mode positions that
have a label (SPEC 2).  Each axis is padded to a multiple of 256, so that shapes repeat.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.config.schema import Config
from megatron_lst.patching.packed import PackedRows, pack_rows, seen_by, self_mask
from megatron_lst.patching.row import Row
from megatron_lst.vocabulary import IGNORE, Vocabulary

BUCKET = 256
ALIGNMENT = 32
"""In int32: 128 bytes."""


@dataclass(frozen=True)
class HostBatch:
    """Named int32 arrays in one buffer, so that a micro-batch reaches the device in one copy.

    Every array begins at a multiple of ALIGNMENT, however long the ones before it are (the number of documents is
    another in every batch): Triton compiles a kernel again for a tensor that does not.

    Attributes:
        buffer: int32 [n], the arrays one after the other.
        places: name -> where it begins, and its shape. What each one is: `model.batch.Batch`.
        direct: names of those that `text_path: direct` needs besides.
        lengths: tokens of each row, N without its padding when added up.
        rows, units: b and U.
        longest_document: in units.
        targets: labels that count.
    """

    buffer: np.ndarray
    places: Mapping[str, tuple[int, tuple[int, ...]]]
    direct: tuple[str, ...]
    lengths: tuple[int, ...]
    rows: int
    units: int
    longest_document: int
    targets: int

    def arrays(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Name, place in the buffer and shape of each array."""
        for name, (start, shape) in self.places.items():
            yield name, slice(start, start + int(np.prod(shape))), shape


def host_batch(rows: Sequence[Row], config: Config, shards: int = 1) -> HostBatch:
    """Lay rows end to end, on any thread.

    Args:
        rows: at least one, all of the same U.
        shards: N is a multiple of this besides: ranks among which sequence parallelism parts the tokens.
    """
    model, multiple = config.model, int(np.lcm(BUCKET, shards))
    packed = pack_rows(rows, model.window, model.decoder_window_units, config.vocabulary.pad, multiple)
    bounds = np.append(np.unique(packed.unit_start), len(packed.unit_start))  # [documents + 1]
    arrays = {
        "document_bounds": bounds,
        "labels": packed.labels,  # [N]
        "unit_position": packed.unit_position,  # [P]
        "unit_mask": self_mask(packed.unit_start, packed.unit_end),  # [4, P]
    }
    direct: dict[str, np.ndarray] = {}
    if model.kind == "lst" and model.text_path == "direct":
        axes, direct = _direct_axes(packed, model.queries, config.vocabulary, multiple)
    else:
        axes = _patch_axes(packed, model.queries)
    buffer, places = _joined({**arrays, **axes, **direct})
    return HostBatch(
        buffer,
        places,
        tuple(direct),
        lengths=tuple(len(row.tokens) for row in rows),
        rows=packed.rows,
        units=packed.units,
        longest_document=int(np.diff(bounds).max()),
        targets=int(np.count_nonzero(packed.labels != IGNORE)),
    )


def _joined(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, tuple[int, tuple[int, ...]]]]:
    """Arrays -> one int32 buffer [n], and the place of each."""
    places, total = {}, 0
    for name, array in arrays.items():
        places[name] = (total, array.shape)
        total += -(-array.size // ALIGNMENT) * ALIGNMENT  # rounded up
    buffer = np.zeros(total, np.int32)
    for (start, _), array in zip(places.values(), arrays.values(), strict=True):
        buffer[start : start + array.size] = array.reshape(-1)
    return buffer, places


def _patch_axes(packed: PackedRows, k: int) -> dict[str, np.ndarray]:
    return {
        "encoder_tokens": packed.tokens,
        "encoder_position": packed.position,
        "encoder_mask": self_mask(packed.token_start, packed.token_end),  # [4, N]
        "patch_start": packed.patch_start,
        "patch_end": packed.patch_end,
        **_cross_axes(packed.cross_start, packed.cross_end, len(packed.patch_start), k),
    }


def _cross_axes(start: np.ndarray, end: np.ndarray, units: int, k: int) -> dict[str, np.ndarray]:
    """Intervals of units [n], in keys: k a unit."""
    seen = np.repeat(seen_by(start, end, units), k, axis=1)  # a unit's keys are seen together
    return {"cross_mask": np.stack((start, end)) * k, "cross_seen_by": seen}  # [2, n], [2, k * units]


class _Axis:
    """Some of the N packed tokens, in order, padded to a multiple; padding tokens see themselves alone.

    Attributes:
        index: the chosen tokens [n].
        size: n with padding.
    """

    def __init__(self, chosen: np.ndarray, multiple: int) -> None:
        self.index = np.flatnonzero(chosen)
        self.size = max(-(-len(self.index) // multiple), 1) * multiple

    def take(self, values: np.ndarray, fill: int) -> np.ndarray:
        """values [N] -> [size], `fill` on padding."""
        return np.concatenate([values[self.index], np.full(self.size - len(self.index), fill)]).astype(np.int32)

    def before(self, tokens: np.ndarray) -> np.ndarray:
        """Number of the axis's tokens in front of each of the N packed tokens."""
        return np.searchsorted(self.index, tokens).astype(np.int32)

    def mask(self, packed: PackedRows) -> np.ndarray:
        """The local window [4, size] in this axis's own numbering."""
        own = np.arange(self.size, dtype=np.int32)
        start, end = own.copy(), own + 1  # the last key is the token itself; padding sees nothing else
        start[: len(self.index)] = self.before(packed.token_start[self.index])  # the same first key, counted here
        return self_mask(start, end)


def _direct_axes(
    packed: PackedRows, k: int, vocabulary: Vocabulary, multiple: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The axes and the maps between them, from N packed tokens and P units."""
    tokens, pad, slots = packed.tokens, vocabulary.pad, len(packed.tokens)
    speech = vocabulary.is_speech(tokens)  # [N]
    spoken = speech | (tokens == vocabulary.speech_marker)  # [N], positions of speech mode
    encoder, decoder = _Axis(speech, multiple), _Axis(spoken, multiple)  # n_e, n_d
    text = _Axis(~spoken & (packed.labels != IGNORE), BUCKET)  # n_t, what the text head predicts
    units = len(packed.patch_start)
    unit_speech = speech[packed.patch_start]  # [P]
    patches = _Axis(unit_speech, BUCKET)  # chosen of the P units, unlike the other axes
    here = np.arange(slots, dtype=np.int32)  # [N]
    last = units - 1  # padding reads the last unit
    source = np.where(speech, encoder.before(here), -1)  # [N]
    axes = {
        "encoder_tokens": encoder.take(tokens, pad),
        "encoder_position": encoder.take(packed.position, 0),
        "encoder_mask": encoder.mask(packed),
        # Bounds in packed tokens become bounds on the encoder's axis; a patch of padding begins and ends behind all.
        "patch_start": encoder.before(patches.take(packed.patch_start, slots)),
        "patch_end": encoder.before(patches.take(packed.patch_end, slots)),
        "decoder_tokens": decoder.take(tokens, pad),
        "decoder_position": decoder.take(packed.position, 0),
        "decoder_mask": decoder.mask(packed),
        **_cross_axes(decoder.take(packed.cross_start, last), decoder.take(packed.cross_end, last + 1), units, k),
    }
    direct = {
        "unit_token": np.where(unit_speech, pad, tokens[packed.patch_start]),
        "unit_patch": np.where(unit_speech, np.cumsum(unit_speech) - 1, -1),  # its number among the patches
        "decoder_source": decoder.take(source, -1),
        "decoder_labels": decoder.take(packed.labels, IGNORE),
        "decoder_slot": decoder.take(here, slots),  # where its loss goes on the axis of N; padding: thrown away
        "text_unit": text.take(packed.unit, last),
        "text_labels": text.take(packed.labels, IGNORE),
        "text_slot": text.take(here, slots),
    }
    return axes, direct
