"""Conversation: caches kept over turns give what the whole gives from its start, in the sequence of training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lst_prep.tokenizer import Tokenizer, chat_format, load_tokenizer
from megatron_lst.chat import BadConversation, ChatTemplate, Speech, Text, Turn
from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import Conversation, GenerationSettings, LatentSpeechTextModel
from megatron_lst.inference.cache import Cache
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary
from tests.support.chat import CHATML, GENERATION, THINKING, chat_tokenizer

CONFIG = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.5,
)  # fmt: skip
SETTINGS = GenerationSettings(max_tokens=11, temperature=1.0, log_probabilities=True, seed=3)


class World:
    def __init__(
        self, folder: Path, template: str = CHATML, codebooks: tuple[int, ...] = (), **options: object
    ) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(str(chat_tokenizer(folder, template)))
        self.template = ChatTemplate(chat_format(self.tokenizer), self.tokenizer)
        info = self.tokenizer.info
        speech = sum(codebooks) or 9
        self.vocabulary = Vocabulary(info.size, speech, info.bos, info.eos, multiple=8, codebooks=codebooks)
        config = replace(CONFIG, **options)  # type: ignore[arg-type]
        oracle = ReferenceModel(config, self.vocabulary, seed=2).double()
        size = 1 if config.kind == "baseline" else 4
        self.model = LatentSpeechTextModel.from_weights(config, self.vocabulary, oracle.state_dict(), size)
        self.heard = Speech(np.random.default_rng(0).integers(0, 9, 7))
        if codebooks:
            self.heard = Speech(
                np.random.default_rng(0).integers(0, codebooks[0], (3, 2)) + np.array([0, codebooks[0]])
            )

    def talk(self) -> tuple[Conversation, list[object]]:
        """Three turns: text answered by speech, speech by anything, both by text."""
        talk = Conversation(self.model, self.template, replace(SETTINGS, min_tokens=4))
        answers: list[object] = []
        talk.say("user", "hello")
        answers.append(talk.answer("speech"))
        talk.say("user", self.heard)
        answers.append(talk.answer("any"))
        talk.say("user", Text("well: "), self.heard, Text("?"))
        answers.append(talk.answer("text"))
        return talk, answers

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[n, V] of a sequence from its start, without anything kept."""
        (counter,) = self.model.counters(1)
        outputs = self.model.advance([counter.add(tokens)], Cache(self.model.config, 1))
        return outputs.logits(np.arange(len(tokens)))


OPTIONS: list[dict[str, object]] = [
    {}, {"text_path": "direct"}, {"kind": "baseline"}, {"decoder_window_units": 3, "cross_rope": True},
    {"codebooks": (5, 5)},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_kept_caches_give_the_logits_of_the_whole(tmp_path: Path, options: dict[str, object]) -> None:
    """The likelihood of every token said, and all logits of the next one, against a start from nothing."""
    world = World(tmp_path, **options)  # type: ignore[arg-type]
    talk, answers = world.talk()
    tokens = talk.tokens
    whole = world.logits(tokens).log_softmax(-1)
    at, checked = 0, 0
    for answer in answers:
        said = answer.tokens  # type: ignore[attr-defined]
        begin = next(i for i in range(at, len(tokens)) if tokens[i : i + len(said)] == said and i)
        found = whole[torch.arange(begin - 1, begin - 1 + len(said)), torch.tensor(said)]
        np.testing.assert_allclose(answer.log_probabilities, found.numpy(), atol=1e-9)  # type: ignore[attr-defined]
        at, checked = begin + len(said), checked + len(said)
    assert checked >= 12

    more = [world.template.end_of_turn, 5]
    unread = talk._unread + more
    kept = world.model.advance([talk.held.counters[0].add(unread)], talk.held.cache).logits(np.array([len(unread) - 1]))
    expected = world.logits(tokens + more)[-1:]
    torch.testing.assert_close(kept, expected, atol=1e-9, rtol=0)
    spoken = world.vocabulary.is_speech(np.array(tokens)).argmax()
    forgotten = world.logits(tokens[:1] + tokens[spoken + 1 :] + more)[-1:]
    assert (forgotten - expected).abs().max() > 1e-3, "control: what the first turns hold matters"


def test_an_answers_cost_is_its_own_turn(tmp_path: Path) -> None:
    """The global transformer never runs twice for a unit: its cache has as many entries as the sequence has units."""
    world = World(tmp_path)
    talk, _ = world.talk()
    (counter,) = world.model.counters(1)
    counter.add(talk.tokens[: len(talk.tokens) - len(talk._unread)])
    assert talk.held.cache.units == [counter.units]
    assert talk.held.cache.tokens == [counter.tokens]
    assert {layer.length[0] for layer in talk.held.cache.global_layers} == {counter.units}  # type: ignore[attr-defined]


@pytest.mark.parametrize("template", [CHATML, GENERATION, THINKING])
def test_the_sequence_is_that_of_training(tmp_path: Path, template: str) -> None:
    """A conversation whose answers are given is, token by token, the row of the same conversation."""
    world = World(tmp_path, template)
    talk, answers = world.talk()
    v = world.vocabulary
    turns = [Turn("user", (Text("hello"),)), None, Turn("user", (world.heard,)), None,
             Turn("user", (Text("well: "), world.heard, Text("?"))), None]  # fmt: skip
    spans = iter(answers)
    given = []
    for turn in turns:
        if turn is None:
            parts = [
                Speech(ids) if kind == "speech" else Text(world.tokenizer.decode(ids.tolist()))
                for kind, ids in next(spans).spans  # type: ignore[attr-defined]
            ]
            turn = Turn("assistant", tuple(parts) or (Text("x"),))
        given.append(turn)
    begin = world.template.stretches(given[:2])[0].ids.tolist()
    assert talk.tokens[: len(begin) + 1] == [v.bos, *begin]
    first = answers[0].tokens  # type: ignore[attr-defined]
    assert talk.tokens[len(begin) + 1 : len(begin) + 2 + len(first)] == [v.speech_marker, *first]
    after = len(begin) + 2 + len(first)
    second = [s for s in world.template.stretches(given[:4]) if not s.learnt][1:]
    heard = (world.heard.ids.reshape(-1) + v.text_size).tolist()
    assert [s.modality for s in second] == ["text", "speech", "text"]
    expected = [v.text_marker, world.template.end_of_turn, *second[0].ids.tolist(), v.speech_marker, *heard,
                v.text_marker, *second[2].ids.tolist()]  # fmt: skip
    assert talk.tokens[after : after + len(expected)] == expected


def test_stopping(tmp_path: Path) -> None:
    """At the end of a turn, of speech, or at the cap; the stopping token is read with the next turn."""
    world = World(tmp_path)
    finishes = set()
    for seed in range(12):
        talk = Conversation(world.model, world.template, replace(SETTINGS, seed=seed, max_tokens=200))
        talk.say("system", "Be brief.")
        talk.say("user", "hello")
        answer = talk.answer("speech")
        finishes.add(answer.finish)
        assert all(kind == "speech" for kind, _ in answer.spans)
        assert world.template.end_of_turn not in answer.tokens
    assert "stop" in finishes
    talk = Conversation(world.model, world.template, replace(SETTINGS, max_tokens=3))
    talk.say("user", "hello")
    assert talk.answer("text", replace(SETTINGS, max_tokens=3, seed=1)).finish == "length"
    assert len(talk._unread) == 1
    talk.say("user", "more")
    talk.answer("text")
    tail = talk.tokens[-40:]
    assert world.template.end_of_turn in tail, "an answer that was cut is ended before the next turn"


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    talk = Conversation(world.model, world.template, SETTINGS)
    with pytest.raises(UserError, match="nobody has spoken"):
        talk.answer()
    with pytest.raises(BadConversation, match="special token"):
        talk.say("user", "<|im_start|>system")
    with pytest.raises(UserError, match="without text or speech"):
        talk.say("user")
    talk.say("user", "hello")
    talk.answer("text")
    with pytest.raises(UserError, match="nobody has spoken"):
        talk.answer()
    talk.say("user", "hello")
    with pytest.raises(UserError, match="the context is 20"):
        talk.answer("text", replace(SETTINGS, context=20))
    small = LatentSpeechTextModel(CONFIG, Vocabulary(text_size=24, speech_size=9, multiple=8), 4)
    with pytest.raises(UserError, match="the model has 24 text ids"):
        Conversation(small, world.template)
    changing = CHATML.replace("{% for", "{{ 'x' * (messages | length // 3) }}{% for", 1)
    other = World(tmp_path / "changing", changing)
    talk = Conversation(other.model, other.template, SETTINGS)
    talk.say("user", "hello")
    talk.answer("text")
    talk.say("user", "hello")
    with pytest.raises(UserError, match="differently once another turn follows"):
        talk.answer("text")
