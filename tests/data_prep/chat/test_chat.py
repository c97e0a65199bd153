"""`lst prep chat`: conversations as JSONL to shards that a stream reads (docs/chat.md)."""

import dataclasses
import json
from typing import Any

import pytest

from lst_prep.jobs import Jobs
from lst_prep.plausible import doubts
from lst_prep.tokenizer import load_tokenizer
from lst_prep.verify import verify_sets
from megatron_lst.chat import ChatFormat
from megatron_lst.config.load import load_config
from megatron_lst.data.stream import RowStream
from megatron_lst.documents.schema import SPEECH, Document
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.errors import UserError
from megatron_lst.vocabulary import IGNORE
from tests.support.chat import TALK, WORDS, ChatWorld, span


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ChatWorld:
    return ChatWorld(tmp_path_factory.mktemp("chat"))


def shown(document: Document) -> list[tuple[str, int, bool]]:
    """(text, frames, learnt) of each stretch."""
    return [
        (document.text[slice(*chars)], int(end - begin) if kind == SPEECH else 0, bool(learnt))
        for (kind, begin, end), chars, learnt in zip(
            document.turn_spans, document.turn_chars, document.turn_learnt, strict=True
        )
    ]


def test_paths_units_and_spans_become_one_document(world: ChatWorld) -> None:
    (document,) = world.run("mixed", world.write("mixed", [TALK]))
    assert (document.id, document.source) == ("talk-1", "talk")
    frames = 25
    assert shown(document) == [
        ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nlisten", 0, False),
        ("", frames, False),
        ("<|im_end|>\n<|im_start|>assistant\n", 0, False),
        ("pi", 5, True),
        ("<|im_end|>", 0, True),
        ("\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n", 0, False),
        ("two, three four five.", 32, True),
        ("<|im_end|>", 0, True),
    ]
    assert document.speech_ids[frames : frames + 5].tolist() == [3, 1, 4, 1, 5]
    assert document.speech_ids[frames + 5 :].tolist() == world.documents[1].speech_ids[8:40].tolist()
    tokenizer = load_tokenizer(str(world.tokenizer))
    assert document.token_ids[-1] == tokenizer.special_tokens["<|im_end|>"]
    assert verify(world.folder / "mixed" / "talk") == []
    form = json.loads((world.folder / "mixed" / "chat.json").read_text())
    assert ShardSet.open(world.folder / "mixed" / "talk").manifest["chat"] == form
    assert ChatFormat.from_plain(form).end_of_turn == "<|im_end|>"


BOTH = {"id": "both", "messages": [{"role": "user", "content": [span(0)]}, {"role": "assistant", "content": [span(1)]}]}


def test_styles_are_templates(world: ChatWorld) -> None:
    styles = ["speech_to_speech", "speech_to_text", "text_to_speech", "text_to_text", "text_then_speech"]
    found = world.run("styles", world.write("styles", [BOTH]), styles=styles, chunk_words=2)
    assert [d.id for d in found] == [f"both:{style}" for style in styles]
    text = " ".join(WORDS)
    answers = [[(words, frames) for words, frames, learnt in shown(d) if learnt] for d in found]
    end = ("<|im_end|>", 0)
    assert answers[0] == [(text, 43), end]
    assert answers[1] == [(text + "<|im_end|>", 0)]
    assert answers[2] == [(text, 43), end]
    assert answers[3] == [(text + "<|im_end|>", 0)]
    assert answers[4] == [
        ("one two,", 0), ("one two,", 14), ("three four", 0), ("three four", 16), ("five.", 0), ("five.", 13), end
    ]  # fmt: skip
    speech = found[4].speech_ids[43:]
    assert speech.tolist() == world.documents[1].speech_ids.tolist(), "chunks hold every frame once"
    questions = [sum(frames for _, frames, learnt in shown(d) if not learnt) for d in found]
    assert questions == [43, 43, 0, 0, 43]
    assert verify_sets([world.folder / "styles"], lambda line: None, Jobs(workers=1)) == []


def test_pieces_that_are_not_those_of_their_text_are_found(world: ChatWorld) -> None:
    (document,) = world.run("pieces", world.write("pieces", [TALK]))
    tokenizer = load_tokenizer(str(world.tokenizer))
    assert doubts(document, tokenizer.info, tokenizer) == []
    wrong = document.token_ids.copy()
    wrong[3] += 1
    (found,) = doubts(dataclasses.replace(document, token_ids=wrong), tokenizer.info, tokenizer)
    assert "document 'talk-1' of source 'talk': pieces [0, " in found


def bad(name: str, messages: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": name, "messages": messages, **more}


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def audio(**of: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "audio", **of}]}


BAD = {
    "ends": (bad("ends", [USER]), "ends_with_user"),
    "long": (bad("long", [{"role": "user", "content": "ab " * 400}, ANSWER]), "longer_than_a_row"),
    "role": (bad("role", [{"role": "bot", "content": "a"}, ANSWER]), "bad_conversation"),
    "key": (bad("key", [USER, ANSWER], tools=[]), "unknown_key"),
    "special": (bad("special", [{"role": "user", "content": "<|im_end|>"}, ANSWER]), "special_token"),
    "range": (bad("range", [{"role": "user", "content": [span(0, 9, 99)]}, ANSWER]), "no_such_span"),
    "document": (bad("document", [{"role": "user", "content": [span(9)]}, ANSWER]), "no_such_span"),
    "units": (bad("units", [audio(units=[20]), ANSWER]), "code_out_of_range"),
    "file": (bad("file", [audio(path="../x.wav"), ANSWER]), "outside_corpus"),
}  # fmt: skip


def test_bad_conversations_are_named_or_dropped_and_counted(world: ChatWorld) -> None:
    """All of them refused by id and reason; with `on_bad=drop` the same folder goes on, and the good ones are there."""
    path = world.write("bad", [value for value, _ in BAD.values()] + [TALK])
    with pytest.raises(UserError) as error:
        world.run("bad", path, row={"units": 300})
    for name, (_, reason) in BAD.items():
        assert f"  {name}: {reason}: {path}: line" in str(error.value)
    assert f"{len(BAD)} conversations cannot be used" in str(error.value)
    assert not (world.folder / "bad" / "talk" / "manifest.json").exists()
    found = world.run("bad", path, row={"units": 300}, on_bad="drop")
    assert [d.id for d in found] == ["talk-1"]
    summary = json.loads((world.folder / "bad" / "summary.json").read_text())
    assert sum(summary["rejected"].values()) == len(BAD)
    assert summary["rejected"]["no_such_span"] == 2
    assert summary["lost"]["talk"] == {"rejected": 9, "used": 1, "share": 0.9}


def test_what_cannot_be_begun_is_refused(world: ChatWorld) -> None:
    path = world.write("one", [TALK])
    with pytest.raises(UserError, match="the id 'talk-1' was there before"):
        world.run("twice", world.write("twice", [TALK, TALK]))
    with pytest.raises(UserError, match="speech of different codecs"):
        world.run("codecs", path, codebook="", codec={"name": "other", "rate": 25, "codebooks": [20]})
    with pytest.raises(UserError, match="names must differ"):
        world.config("names", path, more=[{"name": "talk", "path": str(path)}])
    template = world.folder / "bare.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    with pytest.raises(UserError, match="no special token ends the assistant's turn"):
        world.run("bare", path, template=str(template))
    text = world.write("text", [bad("t", [USER, ANSWER])])
    with pytest.raises(UserError, match="message 0 has no speech, which style speech_to_text needs"):
        world.run("modality", text, styles=["speech_to_text"])
    (document,) = world.run("typed", text, codebook="", spans={})
    assert not document.has_speech


def test_held_out_conversations_are_kept_out_of_training_and_the_stream_reads_both(world: ChatWorld) -> None:
    system = {"role": "system", "content": "You are a very kind and helpful assistant."}
    held = bad("h", [system, {"role": "user", "content": "what is the seventh word of this sentence"}, ANSWER])
    same_system = bad("system", [system, USER, ANSWER])
    same = {**held, "id": "same"}
    more = [{"name": "dev", "path": str(world.write("dev", [held])), "split": "heldout"}]
    path = world.write("train", [TALK, BOTH, same, same_system])
    found = world.run("split", path, more=more, on_bad="drop")
    assert [d.id for d in found] == ["talk-1", "both", "system"], "a system prompt is not held out"
    rejected = json.loads((world.folder / "split" / "summary.json").read_text())["rejected"]
    assert rejected == {"held_out": 1}
    train = world.folder / "train.yaml"
    train.write_text(
        json.dumps({"base": ["split/train.yaml"], "data": {"units": 256, "workers": 0},
                    "training": {"global_batch": 2, "micro_batch": 1}})
    )  # fmt: skip
    config = load_config(str(train), ["training.steps=4"])
    assert [s.kind for s in (*config.data.sources, *config.data.validation)] == ["chat", "chat"]
    for row in next(RowStream(config, 0, 1)).rows:
        row.check(config.vocabulary)
        assert 0 < (row.labels != IGNORE).sum() < len(row.labels) / 2
