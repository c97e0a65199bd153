"""The rows of a micro-batch as tensors on the device, in the shapes that the model's modules take.

N tokens packed end to end, P = b*U units.  Under `text_path: patch` encoder and decoder run over all N tokens.  Under
`direct` they run over shorter axes of their own, cut out on the host so that every mask is still an interval: the
encoder over speech tokens, the decoder over speech-mode positions (`<s>` and speech), the text head over text-mode
positions that have a label (SPEC 2).  Each axis is padded to a multiple of 256, so that shapes repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from megatron_lst.config.schema import Config
from megatron_lst.patching.packed import PackedRows, pack_rows
from megatron_lst.patching.row import Row
from megatron_lst.vocabulary import IGNORE, Vocabulary

BUCKET = 256
ALIGNMENT = 32
"""In int32: 128 bytes."""


@dataclass(frozen=True)
class Batch:
    """b rows of U units. int32 all of it; masks are intervals [2, n]: first visible key and the one after the last.

    n_e, n_d: tokens of the encoder's and decoder's axes; both are N under `text_path: patch`.

    Attributes:
        labels: [N], IGNORE where nothing is predicted.
        encoder_tokens, encoder_position: [n_e]; encoder_mask: local self-attention, in encoder tokens.
        patch_start, patch_end: [patches], encoder tokens of each patch; all P units are patches, or under `direct`
            the units of speech.
        decoder_tokens, decoder_position: [n_d]; decoder_mask: local self-attention, in decoder tokens.
        cross_mask: decoder cross-attention, in keys (k a unit).
        unit_position: [P]; unit_mask: global attention.
        document_bounds: [documents + 1], first unit of each document, and P; longest_document: units of the longest.
        direct: what `text_path: direct` needs besides; None under `patch`.
        rows, units: b and U.
    """

    labels: Tensor
    encoder_tokens: Tensor
    encoder_position: Tensor
    encoder_mask: Tensor
    patch_start: Tensor
    patch_end: Tensor
    decoder_tokens: Tensor
    decoder_position: Tensor
    decoder_mask: Tensor
    cross_mask: Tensor
    unit_position: Tensor
    unit_mask: Tensor
    document_bounds: Tensor
    longest_document: int
    direct: "DirectMaps | None"
    rows: int
    units: int


@dataclass(frozen=True)
class DirectMaps:
    """How the axes of `text_path: direct` hang together. -1: nothing there; slot N: thrown away.

    Attributes:
        unit_token: [P], the token of a text unit.
        unit_patch: [P], the patch of a unit of speech, -1 for text.
        decoder_source: [n_d], encoder token whose state the decoder starts from, -1 at `<s>`.
        decoder_labels, decoder_slot: [n_d], label and position on the axis of N tokens.
        text_unit, text_labels, text_slot: [n_t], the same for the text head; its input is global output `text_unit`.
    """

    unit_token: Tensor
    unit_patch: Tensor
    decoder_source: Tensor
    decoder_labels: Tensor
    decoder_slot: Tensor
    text_unit: Tensor
    text_labels: Tensor
    text_slot: Tensor


def make_batch(rows: Sequence[Row], config: Config, device: torch.device) -> Batch:
    """Lay rows end to end and copy them to the device in one transfer.

    Args:
        rows: at least one, all of the same U.
    """
    model, multiple = config.model, int(np.lcm(BUCKET, config.parallel.tensor))
    packed = pack_rows(rows, model.window, model.decoder_window_units, config.vocabulary.pad, multiple)
    bounds = np.append(np.unique(packed.unit_start), len(packed.unit_start))  # [documents + 1]
    arrays = {
        "document_bounds": bounds,
        "labels": packed.labels,
        "unit_position": packed.unit_position,
        "unit_mask": np.stack((packed.unit_start, packed.unit_end)),  # [2, P]
    }
    direct: dict[str, np.ndarray] = {}
    if model.kind == "lst" and model.text_path == "direct":
        axes, direct = _direct_axes(packed, model.queries, config.vocabulary, multiple)
    else:
        axes = _patch_axes(packed, model.queries)
    tensors = _to_device({**arrays, **axes, **direct}, device)
    maps = DirectMaps(**{name: tensors.pop(name) for name in direct}) if direct else None
    if maps is None:
        for name in ("tokens", "position", "mask"):
            tensors[f"decoder_{name}"] = tensors[f"encoder_{name}"]
    longest = int(np.diff(bounds).max())
    return Batch(**tensors, longest_document=longest, direct=maps, rows=packed.rows, units=packed.units)


def _to_device(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """One pinned buffer, one copy, as many views.

    Every view begins at a multiple of ALIGNMENT, however long the ones before it are (the number of documents is
    another in every batch): Triton compiles a kernel again for a tensor that does not.
    """
    starts, total = [], 0
    for array in arrays.values():
        starts.append(total)
        total += -(-array.size // ALIGNMENT) * ALIGNMENT  # rounded up
    buffer = np.zeros(total, np.int32)
    for start, array in zip(starts, arrays.values(), strict=True):
        buffer[start : start + array.size] = array.reshape(-1)
    flat = torch.from_numpy(buffer)
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    return {
        name: flat[start : start + array.size].view(array.shape)
        for start, (name, array) in zip(starts, arrays.items(), strict=True)
    }


def _patch_axes(packed: PackedRows, k: int) -> dict[str, np.ndarray]:
    return {
        "encoder_tokens": packed.tokens,
        "encoder_position": packed.position,
        "encoder_mask": np.stack((packed.token_start, packed.token_end)),  # [2, N]
        "patch_start": packed.patch_start,
        "patch_end": packed.patch_end,
        "cross_mask": np.stack((packed.cross_start * k, packed.cross_end * k)),  # [2, N], in keys: k a unit
    }


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
        """The local window [2, size] in this axis's own numbering."""
        own = np.arange(self.size, dtype=np.int32)
        start, end = own.copy(), own + 1  # the last key is the token itself; padding sees nothing else
        start[: len(self.index)] = self.before(packed.token_start[self.index])
        return np.stack((start, end))


def _direct_axes(
    packed: PackedRows, k: int, vocabulary: Vocabulary, multiple: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The axes and the maps between them, from N packed tokens and P units."""
    tokens, pad, slots = packed.tokens, vocabulary.pad, len(packed.tokens)
    speech = vocabulary.is_speech(tokens)  # [N]
    spoken = speech | (tokens == vocabulary.speech_marker)  # [N], positions of speech mode
    encoder, decoder = _Axis(speech, multiple), _Axis(spoken, multiple)
    text = _Axis(~spoken & (packed.labels != IGNORE), BUCKET)
    units = len(packed.patch_start)
    unit_speech = speech[packed.patch_start]  # [P]
    patches = _Axis(unit_speech, BUCKET)  # chosen of the P units, unlike the other axes
    here = np.arange(slots, dtype=np.int32)
    last = units - 1
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
        "cross_mask": np.stack(
            (decoder.take(packed.cross_start, last) * k, decoder.take(packed.cross_end, last + 1) * k)
        ),
    }
    direct = {
        "unit_token": np.where(unit_speech, pad, tokens[packed.patch_start]),
        "unit_patch": np.where(unit_speech, np.cumsum(unit_speech) - 1, -1),  # its number among the patches
        "decoder_source": decoder.take(source, -1),
        "decoder_labels": decoder.take(packed.labels, IGNORE),
        "decoder_slot": decoder.take(here, slots),
        "text_unit": text.take(packed.unit, last),
        "text_labels": text.take(packed.labels, IGNORE),
        "text_slot": text.take(here, slots),
    }
    assert set(direct) == {f.name for f in fields(DirectMaps)}
    return axes, direct
