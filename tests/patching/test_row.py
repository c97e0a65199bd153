"""A row whose maps would leak or crash is refused with its document."""

import dataclasses

import numpy as np
import pytest

from megatron_lst.errors import DamagedDataError
from megatron_lst.patching.row import Chunk, assemble_row
from tests.support.toy import toy_config, toy_rows


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("closed", 5, 0, "closing map must not decrease"),
        ("closed", -1, 60, "reads a unit that is not closed"),
        ("unit", 4, 9, "steps of 0 or 1"),
        ("labels", 2, 10_000, "label 10000 is outside the vocabulary"),
        ("tokens", 2, -1, "token id -1 is outside"),
    ],
)
def test_a_broken_row_is_refused_with_its_document(name: str, place: int, value: int, message: str) -> None:
    config = toy_config()
    row = toy_rows(config, 1)[0]
    row.check(config.vocabulary)
    broken = getattr(row, name).copy()
    broken[place] = value
    with pytest.raises(DamagedDataError, match=message) as caught:
        dataclasses.replace(row, **{name: broken}).check(config.vocabulary)
    assert repr(row.document_ids[int(row.document[place])]) in str(caught.value)


def test_a_document_that_begins_with_speech_is_refused() -> None:
    vocabulary = toy_config().vocabulary

    def row_of(tokens: list[int]) -> None:
        ones = np.ones(len(tokens), np.int32)
        assemble_row([Chunk(np.array(tokens, np.int32), ones, ones < 0, "book-7")], 4, vocabulary).check(vocabulary)

    row_of([vocabulary.bos, vocabulary.speech_marker, vocabulary.text_size])
    with pytest.raises(DamagedDataError, match=r"'book-7', token 0: .*begins with speech and no marker|no closed unit"):
        row_of([vocabulary.text_size, vocabulary.eos])
