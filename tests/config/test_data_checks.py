"""What of the training stream's configuration is refused, and how it says so."""

from typing import Any

import pytest

from megatron_lst.config.checks import check
from megatron_lst.config.load import build, merge
from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError

SPEECH = {"name": "speech", "kind": "interleaved", "shards": ["a"]}
TEXT = {"name": "text", "kind": "text", "shards": ["b/"]}


def make(data: dict[str, Any], **others: Any) -> Config:
    return build(Config, merge({"data": {"sources": [SPEECH, TEXT]}}, {"data": data, **others}))


def test_a_plain_configuration_passes() -> None:
    check(make({"validation": [{**SPEECH, "shards": ["c"]}]}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"spans": {"speech_min": 9, "speech_max": 8}}, "speech_min=9 and data.spans.speech_max=8"),
        ({"spans": {"text_min": 0}}, "text_min: must be at least 1"),
        ({"spans": {"text_ratio": 0}}, "text_ratio"),
        ({"spans": {"speech_first": 1.5}}, "speech_first: must be between 0 and 1"),
        ({"workers": -1}, "data.workers"),
        ({"stall_seconds": 0}, "data.stall_seconds"),
        ({"cache_gigabytes": 0}, "cache_gigabytes"),
        ({"sources": [SPEECH, SPEECH]}, "names must differ"),
        ({"sources": [{**SPEECH, "weight": 0}]}, "data\\.sources\\[0\\]\\.weight: must be above 0"),
        ({"sources": [{**SPEECH, "shards": []}]}, "no shard sets"),
        ({"validation": [{**TEXT, "shards": ["b"]}]}, "trained on too"),
    ],
)
def test_contradictions_are_refused_by_key(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(make(data))


def test_the_mixed_probability_is_a_probability() -> None:
    with pytest.raises(UserError, match=r"patching\.mixed_probability"):
        check(make({}, patching={"mixed_probability": -0.1}))
