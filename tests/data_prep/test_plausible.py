"""What a wrong preparation leaves in shards, and `lst prep verify` finds; each with a control."""

import dataclasses
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from lst_prep.config import JobConfig, PrepConfig, TextSource
from lst_prep.jobs import Jobs
from lst_prep.pipeline import run
from lst_prep.plausible import doubts
from lst_prep.verify import verify_sets
from megatron_lst.documents.schema import Document
from megatron_lst.documents.shards import ShardSet
from megatron_lst.documents.writing import write_set
from tests.data.toy import CODEBOOK, TOKENIZER, speech_document

LONG = " ".join(f"Sentence {i} is about the sea and the ships on it." for i in range(40))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished preparation of text."""
    folder = tmp_path_factory.mktemp("made")
    texts = [LONG, "今天天气很好。我们去公园。" * 9, "Une été à la mer.", "नदी के किनारे एक गाँव था।", "😀😀", "a" * 40]
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = TextSource("toy", str(folder / "t.jsonl"), "CC0")
    run(PrepConfig(text=(source,), out=str(folder / "out"), jobs=JobConfig(workers=1)), quiet=True)
    return folder / "out"


def verified(out: Path, documents: list[Document], made: Path, **files: str) -> list[str]:
    """Faults of a set `text` of these documents, beside the tokenizer of `made`."""
    write_set(out / "text", documents, "text", ShardSet.open(made / "text").tokenizer)
    (out / "tokenizer.json").write_text((made / "tokenizer.json").read_text())
    for name, content in files.items():
        (out / f"{name}.json").write_text(content)
    return verify_sets([out], lambda line: None, Jobs(workers=1))


def test_what_is_right_is_all_well(made: Path) -> None:
    assert verify_sets([made], lambda line: None, Jobs(workers=1)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ids, info: ids[:128], r"pieces end in .*, its text in"),
        (lambda ids, info: ids[:-20], r"pieces end in .*, its text in"),
        (lambda ids, info: ids[:20], r"20 pieces for \d+ characters: truncated"),
        (lambda ids, info: np.append(ids, np.full(5000, 5, np.int32)), r"characters: padded"),
        (lambda ids, info: np.append(ids[:9], np.append(np.int32(info.eos), ids[9:])), r"BOS or EOS at place 9 inside"),
        (lambda ids, info: np.append(np.int32(info.bos), ids), r"BOS or EOS at place 0 inside"),
    ],
)
def test_pieces_that_are_not_the_texts_are_found(made: Path, tmp_path: Path, damage: Any, message: str) -> None:
    shards = ShardSet.open(made / "text")
    document = shards.get(0)
    wrong = dataclasses.replace(document, token_ids=damage(document.token_ids, shards.tokenizer).astype(np.int32))
    assert re.search(message, "".join(verified(tmp_path, [wrong], made)))
    assert verified(tmp_path / "right", [document], made) == []


def sounds(words: int, seconds: float, text: str = "") -> Document:
    """So many words in so much sound."""
    frames = int(seconds * 25)
    edges = np.linspace(0, frames, 2 * words + 1).astype(np.int32)
    ids = np.random.default_rng(words).integers(0, 20, frames).astype(np.int16)
    many = np.arange(words, dtype=np.int32)
    return Document(
        id=f"{words}-in-{seconds}",
        source="toy",
        text=text or " ".join(["word"] * words),
        speech_ids=ids,
        token_ids=np.full(words, 5, np.int32),
        word_frames=np.stack([edges[:-1:2], edges[1::2]], 1),
        word_tokens=np.stack([many, many + 1], 1),
        word_chars=np.stack([many * 5, many * 5 + 4], 1),
        word_scores=np.ones(words, np.float32),
    )


def test_sound_that_cannot_be_of_its_text_is_found() -> None:
    assert doubts(sounds(200, 10.0), TOKENIZER)
    assert doubts(sounds(30, 60.0), TOKENIZER)
    for right in (sounds(30, 10.0), sounds(3, 20.0), sounds(40, 60.0)):
        assert doubts(right, TOKENIZER) == []
    twice = sounds(40, 20.0)
    again = np.concatenate([twice.speech_ids[:250], twice.speech_ids[:250]])
    assert "twice" in doubts(dataclasses.replace(twice, speech_ids=again), TOKENIZER)[0]
    assert doubts(dataclasses.replace(twice, speech_ids=again), TOKENIZER, rate=None) == []


def test_one_sound_with_several_texts_is_found(tmp_path: Path) -> None:
    """Segments whose times were not read become the whole file, each with its own text."""
    right = [speech_document(i, words=40) for i in range(6)]
    write_set(tmp_path / "right" / "speech", right, "speech", TOKENIZER, CODEBOOK, size_limit=4096)
    assert verify_sets([tmp_path / "right"], lambda line: None, Jobs(workers=1)) == []
    same = dataclasses.replace(right[1], id="again")  # the same recording twice, with the same text
    wrong = dataclasses.replace(right[2], id="other", text=right[2].text.replace("w", "v"))
    write_set(tmp_path / "speech", [*right, same, wrong], "speech", TOKENIZER, CODEBOOK, size_limit=4096)
    assert verify_sets([tmp_path], lambda line: None, Jobs(workers=1)) == [
        "documents 'speech-2' and 'other' are the same sound with different texts"
    ]


def test_a_list_of_version_1_is_completed_by_the_held_out_texts_beside_it(made: Path, tmp_path: Path) -> None:
    """It knows whole sentences alone; a set of its time may hold them inside running text."""
    shards = ShardSet.open(made / "text")
    secret = "the captain of the blue ship never told anybody where he had been"
    bare = xxhash.xxh3_128_hexdigest(unicodedata.normalize("NFKD", secret).encode())
    old = json.dumps({"kind": "lst-heldout", "version": 1, "hashes": [bare]})
    leak = Document(
        id="leak", source="toy", text=f"It is said that {secret} in spring.", token_ids=np.full(9, 5, np.int32)
    )
    held = Document(id="held", source="toy", text=secret, token_ids=np.full(9, 5, np.int32))
    write_set(tmp_path / "heldout-text", [held], "text", shards.tokenizer)
    write_set(tmp_path / "text", [leak], "text", shards.tokenizer)
    (tmp_path / "heldout.json").write_text(old)
    faults = verify_sets([tmp_path], lambda line: None, Jobs(workers=1))
    assert len(faults) == 1
    assert "'leak' holds the held-out sentence" in faults[0]
