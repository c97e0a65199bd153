"""A micro-batch on the host: the direct path's axes, and the bounds of documents that fused attention takes."""

import numpy as np
import pytest
import torch

from lst_kernels import queries_of_keys
from megatron_lst.patching.host_batch import host_batch
from tests.support.single import make_batch
from tests.support.toy import toy_config, toy_rows

CPU = torch.device("cpu")


def test_document_bounds_say_the_same_as_the_intervals() -> None:
    config = toy_config()
    batch = make_batch(toy_rows(config, 3), config, CPU)
    bounds = batch.document_bounds.numpy()
    assert bounds[0] == 0
    assert bounds[-1] == batch.rows * batch.units
    start = np.repeat(bounds[:-1], np.diff(bounds))
    np.testing.assert_array_equal(batch.unit_mask[0].numpy(), start)
    np.testing.assert_array_equal(batch.unit_mask[1].numpy(), np.arange(len(start)) + 1)
    assert batch.longest_document == np.diff(bounds).max()


@pytest.mark.parametrize("text_path", ["patch", "direct"])
def test_every_tensor_is_aligned_whatever_the_number_of_documents(text_path: str) -> None:
    """A kernel that Triton compiled for aligned tensors is compiled again for others, in the middle of training."""
    config = toy_config(model__text_path=text_path)
    counts = set()
    for seed in range(4):
        batch = make_batch(toy_rows(config, 3, seed=seed), config, CPU)
        counts.add(len(batch.document_bounds) % 4)
        held = [*vars(batch).values(), *(vars(batch.direct).values() if batch.direct else ())]
        assert {t.storage_offset() % 32 for t in held if isinstance(t, torch.Tensor)} == {0}
    assert len(counts) > 1, "end to end, some of these would not be aligned to 16 bytes"


@pytest.mark.parametrize("options", [{}, {"text_path": "direct"}, {"decoder_window_units": 3, "queries": 3}], ids=str)
def test_masks_turned_round_are_those_that_the_kernels_find(options: dict[str, object]) -> None:
    config = toy_config(**{f"model__{key}": value for key, value in options.items()})
    batch = make_batch(toy_rows(config, 3), config, CPU)
    for mask in (batch.unit_mask, batch.encoder_mask, batch.decoder_mask):
        assert torch.equal(mask[2:], queries_of_keys(mask[0], mask[1], mask.shape[1]))
    keys = batch.rows * batch.units * config.model.queries
    assert torch.equal(batch.cross_seen_by, queries_of_keys(*batch.cross_mask, keys))
    assert not torch.equal(batch.cross_seen_by[:, :-1], batch.cross_seen_by[:, 1:]), "the control: keys differ"


def test_direct_axes_hold_every_labelled_position_once() -> None:
    config = toy_config(model__text_path="direct", model__window=5)
    rows = toy_rows(config, 3)
    batch = make_batch(rows, config, CPU)
    assert batch.direct is not None
    total = len(batch.labels)
    slots = torch.cat((batch.direct.decoder_slot, batch.direct.text_slot)).numpy()
    used = np.bincount(slots, minlength=total + 1)[:total]
    assert used.max() == 1
    assert used[batch.labels.numpy() >= 0].all()
    tokens = np.concatenate([row.tokens for row in rows])
    spoken = config.vocabulary.is_speech(tokens) | (tokens == config.vocabulary.speech_marker)
    assert used[: len(tokens)][spoken].all()


def test_direct_windows_are_the_rows_windows_restricted_to_the_axis() -> None:
    """Every (query, key) pair of the packed window between tokens of the axis, and no other."""
    config = toy_config(model__text_path="direct", model__window=5)
    rows = toy_rows(config, 2, seed=4)
    packed = make_batch(rows, toy_config(model__window=5), CPU)
    direct = make_batch(rows, config, CPU)
    assert direct.direct is not None
    slots = direct.direct.decoder_slot.numpy()
    count = int((slots < len(packed.labels)).sum())
    expected = {
        (t, s)
        for t in slots[:count]
        for s in slots[:count]
        if packed.encoder_mask[0][t] <= s < packed.encoder_mask[1][t]
    }
    start, end = direct.decoder_mask[:2].numpy()
    found = {(slots[i], slots[j]) for i in range(count) for j in range(start[i], end[i])}
    assert found == expected


def test_the_token_axis_is_a_whole_number_of_buckets() -> None:
    config = toy_config()
    for shards in (1, 3):
        batch = host_batch(toy_rows(config, 2), config, shards)
        length = batch.places["labels"][1][0]
        assert length % 256 == 0
        assert length % shards == 0
