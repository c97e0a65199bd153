"""Normalisation and sentences of the held-out list."""

import re
import unicodedata

import pytest

from megatron_lst.documents.heldout import HeldOut, normalise_text, sentence_spans, text_hash

TEXTS = (
    "It's 3 o'clock, Mr. O\u2019Neil! Said -- \"never\"?  And_so it was.\nA line\twith tabs; & more...",
    "\u00c9t\u00e9 \ufb01ne Stra\u00dfe \u0130stanbul na\u00efve e\u0301t\u00e9."
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1! \uac00\ub098.",
    "",
    " .. !",
    "ABC\x00def\x1c\x7fghi.",
)


def by_definition(text: str) -> str:
    """Every step for every character."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(ch for ch in folded if not unicodedata.combining(ch))
    return re.sub(r"[^\w]+", " ", bare.replace("'", "").replace("\u2019", "")).strip()


@pytest.mark.parametrize("text", [*TEXTS, "".join(map(chr, range(128)))])
def test_the_short_way_for_ascii_changes_nothing(text: str) -> None:
    assert normalise_text(text) == by_definition(text)
    for begin, end in sentence_spans(text):
        assert by_definition(text[begin:end])


def test_what_is_added_is_found_and_cut_out_however_it_looks() -> None:
    heldout = HeldOut()
    heldout.add("It was. Never \u00e9t\u00e9!")
    assert heldout.hashes == {text_hash("it was"), text_hash("NEVER ETE")}
    assert heldout.find("So it was. It, was! Never ete?") == ["It, was!", "Never ete?"]
    assert heldout.remove("So it was. It, was! Then. Never ete? After.") == (["So it was.", "Then.", "After."], 2)
