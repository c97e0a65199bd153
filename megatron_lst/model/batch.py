"""A micro-batch as tensors on the device. `patching.host_batch` cut out its axes; nothing is computed here."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lst.patching.host_batch import HostBatch


@dataclass(frozen=True)
class Batch:
    """b rows of U units. int32 all of it. Masks are intervals [2, n]: of each query the first visible key and the one
    after the last. Those of self-attention are [4, n]: of each key, the same of the queries that see it.

    n_e, n_d: tokens of the encoder's and decoder's axes; both are N under `text_path: patch`.

    Attributes:
        labels: [N], IGNORE where nothing is predicted.
        encoder_tokens, encoder_position: [n_e]; encoder_mask: local self-attention, in encoder tokens.
        patch_start, patch_end: [patches], encoder tokens of each patch; all P units are patches, or under `direct`
            the units of speech.
        decoder_tokens, decoder_position: [n_d]; decoder_mask: local self-attention, in decoder tokens.
        cross_mask: [2, n_d], decoder cross-attention, in keys (k a unit); cross_seen_by: [2, k P], each key's queries.
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
    cross_seen_by: Tensor
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


def to_device(host: HostBatch, device: torch.device) -> Batch:
    """One pinned buffer, one copy, as many views."""
    flat = torch.from_numpy(host.buffer)
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    tensors = {name: flat[place].view(shape) for name, place, shape in host.arrays()}
    direct = DirectMaps(**{name: tensors.pop(name) for name in host.direct}) if host.direct else None
    if direct is None:  # one axis for both
        for name in ("tokens", "position", "mask"):
            tensors[f"decoder_{name}"] = tensors[f"encoder_{name}"]
    return Batch(**tensors, longest_document=host.longest_document, direct=direct, rows=host.rows, units=host.units)
