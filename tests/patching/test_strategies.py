"""Every strategy of SPEC 6 on spans, and T3: the maps of every prefix are the prefix of the maps (SPEC 4)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lst.config.schema import PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.patching.closing import closed_units
from megatron_lst.patching.strategies import (
    ALIGNED,
    SINGLE,
    STATIC,
    Patcher,
    PatchingSchedule,
    aligned_patches,
    segments_of,
    single_patches,
    static_patches,
)


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """n frames and the half-open segments of its words."""
    count = draw(st.integers(0, 6))
    edges = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 14)), min_size=count, max_size=count))
    segments, at = [], 0
    for gap, length in edges:
        segments.append((at + gap, at + gap + length))
        at += gap + length
    frames = at + draw(st.integers(0 if count else 1, 9))
    return frames, np.array(segments, np.int64).reshape(-1, 2)


def test_static_is_floor_of_position_over_size() -> None:
    patches = static_patches(10, 4)
    assert patches.length.tolist() == [4, 4, 2]
    assert patches.late.tolist() == [False, False, True]
    assert not static_patches(8, 4).late.any()
    assert single_patches(3).length.tolist() == [1, 1, 1]


def test_aligned_separate_gives_each_gap_a_patch() -> None:
    patches = aligned_patches(20, np.array([[2, 6], [6, 9], [12, 18]]))
    assert patches.length.tolist() == [2, 4, 3, 3, 6, 2]
    assert patches.word.tolist() == [False, True, True, False, True, False]
    assert not patches.late.any()


def test_aligned_merged_joins_gaps_to_the_preceding_word_and_the_first_to_the_first() -> None:
    patches = aligned_patches(20, np.array([[2, 6], [6, 9], [12, 18]]), "merged")
    assert patches.length.tolist() == [6, 6, 8]
    assert patches.word.all()


def test_long_patches_are_split_left_to_right_and_counted() -> None:
    patches = aligned_patches(20, np.array([[2, 15], [15, 20]]), max_length=5)
    assert patches.length.tolist() == [2, 5, 5, 3, 5]
    assert patches.clipped.tolist() == [False, True, False, False, False]


@settings(max_examples=200, deadline=None)
@given(spans(), st.sampled_from(["separate", "merged"]), st.integers(1, 9), st.integers(0, 1))
def test_aligned_covers_the_span_and_respects_its_rules(
    span: tuple[int, np.ndarray], silence: str, max_length: int, lag: int
) -> None:
    frames, segments = span
    patches = aligned_patches(frames, segments, silence, max_length, lag)
    assert patches.length.sum() == frames
    assert patches.length.min() >= 1
    assert patches.length.max() <= max_length
    assert np.array_equal(patches.late, (patches.length < max_length) & bool(lag))
    starts = set((np.cumsum(patches.length) - patches.length).tolist())
    assert set(segments[:, 0].tolist()) - {segments[0, 0] if len(segments) and silence == "merged" else -1} <= starts
    if silence == "separate":
        assert set(segments[:, 1].tolist()) - {frames} <= starts
    whole = aligned_patches(frames, segments, silence, frames)
    assert patches.clipped.sum() == (whole.length > max_length).sum()


def maps(patches: Any, followed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """u and c of `<s>` + span (+ a marker after it)."""
    length = np.concatenate([[1], patches.length, [1] if followed else []]).astype(int)
    late = np.concatenate([[False], patches.late, [False] if followed else []]).astype(bool)
    return np.repeat(np.arange(len(length)), length), closed_units(length, late)


def prefix_of_segments(segments: np.ndarray, frames: int) -> np.ndarray:
    """What a reader of the first `frames` frames knows of the words: those that have begun, cut at the end."""
    begun = segments[segments[:, 0] < frames]
    return np.minimum(begun, frames)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7))
def test_t3_static_maps_of_prefixes(frames: int, size: int) -> None:
    u, c = maps(static_patches(frames, size))
    for cut in range(1, frames + 1):
        u_cut, c_cut = maps(static_patches(cut, size), followed=False)
        assert np.array_equal(u_cut, u[: cut + 1])
        assert np.array_equal(c_cut, c[: cut + 1])


def test_t3_fails_for_blts_map_at_truncated_patches_only() -> None:
    """Negative control: u(t+1) - 1, BLT's map, depends on what follows exactly where a patch is cut short."""

    def blt(u: np.ndarray) -> np.ndarray:
        return np.append(u[1:] - 1, u[-1] - 1)

    for frames in range(1, 13):
        patches = static_patches(frames, 4)
        u, c = maps(patches)
        differs = np.flatnonzero(blt(u)[:-1] != c[:-1])
        assert differs.tolist() == ([frames] if frames % 4 else [])


@settings(max_examples=200, deadline=None)
@given(spans(), st.sampled_from(["separate", "merged"]), st.integers(1, 9))
def test_t3_aligned_maps_of_prefixes_with_an_open_tail(
    span: tuple[int, np.ndarray], silence: str, max_length: int
) -> None:
    """A prefix knows which segments have ended; its last patch is open and has not closed unless one ended there."""
    frames, segments = span
    patches = aligned_patches(frames, segments, silence, max_length)
    u, c = maps(patches)
    ends = set(np.cumsum(patches.length).tolist())
    for cut in range(1, frames + 1):
        head = aligned_patches(cut, prefix_of_segments(segments, cut), silence, max_length)
        late = head.late.copy()
        late[-1] = cut not in ends
        length = np.concatenate([[1], head.length]).astype(int)
        u_cut = np.repeat(np.arange(len(length)), length)
        assert np.array_equal(u_cut, u[: cut + 1])
        assert np.array_equal(closed_units(length, np.append([False], late)), c[: cut + 1])


@settings(max_examples=200, deadline=None)
@given(spans(), st.sampled_from(["separate", "merged"]), st.integers(1, 9))
def test_t3_lagged_alignment_needs_no_side_information_about_the_end(
    span: tuple[int, np.ndarray], silence: str, max_length: int
) -> None:
    """aligned_lag=1: the maps of a prefix follow from the words that have begun in it, the open one included."""
    frames, segments = span
    u, c = maps(aligned_patches(frames, segments, silence, max_length, 1))
    for cut in range(1, frames + 1):
        head = aligned_patches(cut, prefix_of_segments(segments, cut), silence, max_length, 1)
        u_cut, c_cut = maps(head, followed=False)
        assert np.array_equal(u_cut, u[: cut + 1])
        assert np.array_equal(c_cut, c[: cut + 1])


@settings(max_examples=100, deadline=None)
@given(spans(), st.integers(1, 9), st.data())
def test_head_cuts_patches(span: tuple[int, np.ndarray], max_length: int, data: st.DataObject) -> None:
    frames, segments = span
    patches = aligned_patches(frames, segments, max_length=max_length)
    cut = data.draw(st.integers(1, frames))
    head = patches.head(cut)
    assert head.length.sum() == cut
    assert np.array_equal(head.length[:-1], patches.length[: len(head.length) - 1])
    assert head.late[-1] == (cut not in set(np.cumsum(patches.length).tolist()))


def document(pieces: bool = True) -> Document:
    return Document(
        id="d7",
        source="books",
        text="a bc",
        token_ids=np.array([5, 6, 7], np.int32),
        speech_ids=np.zeros(20, np.int16),
        word_frames=np.array([[2, 8], [11, 18]], np.int32),
        word_tokens=np.array([[0, 1], [1, 3]], np.int32),
        piece_frames=np.array([[2, 8], [11, 14], [14, 18]] if pieces else np.zeros((0, 2)), np.int32),
    )


def test_segments_are_clipped_to_the_span() -> None:
    assert segments_of(document(), "word", 0, 20).tolist() == [[2, 8], [11, 18]]
    assert segments_of(document(), "word", 5, 12).tolist() == [[0, 3], [6, 7]]
    assert segments_of(document(), "word", 8, 11).tolist() == []
    assert segments_of(document(), "bpe", 11, 20).tolist() == [[0, 3], [3, 7]]


def test_a_document_without_the_needed_alignment_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"d7.*books.*text pieces"):
        segments_of(document(pieces=False), "bpe", 0, 20)
    bare = Document(id="d8", source="books", text="a", token_ids=np.array([5]), speech_ids=np.zeros(9, np.int16))
    with pytest.raises(UserError, match=r"d8.*no aligned words"):
        Patcher(ALIGNED, PatchingConfig()).segments(bare, 0, 9)
    static = Patcher(STATIC, PatchingConfig())
    assert static.cut(9, static.segments(bare, 0, 9)).length.tolist() == [4, 4, 1]


def test_choice_of_each_strategy() -> None:
    def share(strategy: str, row: int) -> float:
        config = PatchingConfig(strategy=strategy, mixed_probability=0.25)  # type: ignore[arg-type]
        return PatchingSchedule(config, 10, 20).aligned_share(row)

    assert [share("curriculum", row) for row in (0, 9, 10, 15, 19, 20, 99)] == pytest.approx([1, 1, 1, 0.5, 0.1, 0, 0])
    assert share("mixed", 5) == 0.25
    assert (share("aligned", 5), share("static", 5)) == (1, 0)
    assert PatchingSchedule(PatchingConfig(strategy="none"), 0, 0).choose(0, 0.0).method == SINGLE
    curriculum = PatchingSchedule(PatchingConfig(strategy="curriculum"), 10, 20)
    assert curriculum.choose(15, 0.49).method == ALIGNED
    assert curriculum.choose(15, 0.51).method == STATIC
    assert PatchingSchedule(PatchingConfig(strategy="curriculum"), 5, 5).choose(5, 0.0).method == STATIC
