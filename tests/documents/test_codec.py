from fractions import Fraction

import numpy as np
import pytest

from megatron_lst.documents.codec import Codec, codebook_entry, codec_of
from megatron_lst.errors import UserError
from megatron_lst.vocabulary import Vocabulary, parse_rate, rate_text

MIMI = Codec("mimi", (2048,) * 8, Fraction(25, 2))


def test_each_codebook_has_its_own_range() -> None:
    codes = np.array([[0, 0, 0], [3, 4, 1]])
    codec = Codec("toy", (4, 5, 2), 50)
    assert codec.ids(codes).tolist() == [[0, 4, 9], [3, 8, 10]]
    assert np.array_equal(codec.codes(codec.ids(codes)), codes)
    assert codec.ids(codes).max() < codec.size == 11


def test_ids_are_stored_as_wide_as_they_need_to_be() -> None:
    assert MIMI.dtype == np.int16
    wide = Codec("mimi", (2048,) * 17, "12.5")
    assert wide.dtype == np.int32
    top = np.full((1, 17), 2047)
    assert np.array_equal(wide.codes(wide.ids(top)), top)
    # control: what int16 would have made of it
    assert not np.array_equal(wide.codes(wide.ids(top).astype(np.int16)), top)


def test_one_codebook_keeps_one_axis() -> None:
    codec = Codec("hubert", (500,))
    assert codec.ids(np.array([[3], [499]])).tolist() == [3, 499]
    assert codec.plain and not MIMI.plain and not Codec("hubert", (500,), 50).plain


@pytest.mark.parametrize(
    ("ids", "wrong"),
    [
        (np.zeros(4, np.int16), r"shape \[4\]"),
        (np.zeros((4, 3), np.int16), r"shape \[4, 3\]"),
        (np.array([[0, 2]]), "code -2 of codebook 1"),
        (np.array([[0, 4], [4, 7]]), "frame 1: code 4 of codebook 0, which has 4"),
    ],
)
def test_ids_that_are_not_of_the_codec_are_told(ids: np.ndarray, wrong: str) -> None:
    import re

    codec = Codec("toy", (4, 5))
    assert re.search(wrong, codec.check(ids))
    assert codec.check(np.array([[0, 4], [3, 8]])) == ""


def test_rates_are_exact() -> None:
    assert parse_rate("80/3", "r") == Fraction(80, 3)
    assert parse_rate(12.5, "r") == Fraction(25, 2)
    for text in ("25", "12.5", "80/3", "86.1328125", "0.1"):
        assert rate_text(parse_rate(text, "r")) == text
    for wrong in (0, -1, "fast", "1/0", float("nan"), float("inf")):
        with pytest.raises(UserError, match="vocabulary.frame_rate"):
            parse_rate(wrong, "vocabulary.frame_rate")


def test_a_manifest_says_it_all_and_an_old_one_means_25_hz() -> None:
    codec = Codec("x", (3, 4), "80/3", encoder="e", decoder="d")
    assert codec_of({"codec": codec.to_plain(), "codebook": codebook_entry(codec)}) == codec
    old = codec_of({"codebook": {"fingerprint": "abc", "size": 501, "extractor": "mfcc"}})
    assert old == Codec("mfcc", (501,), 25, "abc")
    assert codec_of({"codebook": None}) is None
    with pytest.raises(UserError, match="codec"):
        codec_of({"codec": {"name": "x", "books": 3}})


def test_other_rates_and_codebooks_are_other_codecs() -> None:
    prints = {c.fingerprint for c in (MIMI, Codec("mimi", (2048,) * 8, 25), Codec("mimi", (2048,) * 4, 12.5))}
    assert len(prints) == 3
    assert str(MIMI) == "mimi, 12.5 Hz, 8 x 2,048"


def test_the_vocabulary_holds_the_codebooks_to_their_sum() -> None:
    vocabulary = Vocabulary(speech_size=16384, codebooks=(2048,) * 8, frame_rate=12.5)
    assert vocabulary.depth == 8 and vocabulary.rate == Fraction(25, 2)
    assert Vocabulary().depth == 1 and Vocabulary().rate == 25
    with pytest.raises(UserError, match="sum to"):
        Vocabulary(speech_size=501, codebooks=(2048,) * 8)
    with pytest.raises(UserError, match="frame_rate"):
        Vocabulary(frame_rate="often")
