"""ASR, TTS and questions through real generation; speed against the baseline: steps and caches, not seconds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.speech_tasks import SpokenQuestion, answer_questions, recognise, synthesise
from megatron_lst.evaluation.speed import measure, random_model, table
from megatron_lst.patching.chunks import speech_span, text_span
from megatron_lst.vocabulary import Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
CONFIG = Config(
    vocabulary=V,
    model=ModelConfig(
        hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1, window=8
    ),
    patching=PatchingConfig(strategy="static", size=4),
)
BASELINE = replace(CONFIG, model=replace(CONFIG.model, kind="baseline"), patching=PatchingConfig(strategy="none"))


def document(name: str, frames: int) -> Document:
    return Document(
        id=name, source="s", text="abc", token_ids=np.array([5, 6, 7], np.int32),
        speech_ids=np.arange(frames, dtype=np.int16) % 9, word_frames=np.array([[0, frames]], np.int32),
        word_tokens=np.array([[0, 3]], np.int32), word_chars=np.array([[0, 3]], np.int32),
        word_scores=np.ones(1, np.float32),
    )  # fmt: skip


def decode(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def test_recognition_counts_context_and_errors_and_refuses_by_id() -> None:
    model = random_model(CONFIG, "cpu", torch.float32)
    documents = [document("a", 40), document("long", 90), document("b", 16)]
    result = recognise(model, documents, decode, max_tokens=5, context=60)
    assert list(result.hypotheses) == ["a", "b"]
    assert set(result.refused) == {"long"}
    assert result.context_units == (3 + 10) + (3 + 4)
    assert result.context_tokens == 43 + 19
    assert result.wer.length == 2
    assert result.judged is None
    heard = recognise(model, documents[:1], decode, max_tokens=5, transcribe=lambda units: "abc" * (len(units) == 40))
    assert heard.judged is not None
    assert (heard.judged.wer.rate, heard.wer.rate >= 1) == (0.0, True)
    with pytest.raises(UserError, match="long: prompt of 93 tokens"):
        recognise(model, documents[1:2], decode, context=60)


def test_synthesis_takes_a_quarter_of_the_steps_and_is_graded_by_a_judge() -> None:
    model = random_model(CONFIG, "cpu", torch.float32)
    result = synthesise(model, [document("a", 8), document("b", 8)], max_tokens=24, transcribe=lambda units: "abc")
    assert all((u >= 0).all() and (u < 9).all() for u in result.speech_ids.values())
    assert result.generated == sum(map(len, result.speech_ids.values()))
    assert result.global_steps <= result.generated / 4
    assert result.judged is not None
    assert result.floor is not None
    assert (result.judged.cer.rate, result.judged.wer.rate, result.floor.wer.rate) == (0.0, 0.0, 0.0)
    own = document("a", 8).speech_ids.tolist()
    hears_originals = lambda units: "abc" if units.tolist() == own else ""
    result = synthesise(model, [document("a", 8)], max_tokens=24, transcribe=hears_originals)
    assert (result.judged and result.judged.cer.rate, result.floor and result.floor.cer.rate) == (1.0, 0.0)


def test_questions_few_shot() -> None:
    model = random_model(CONFIG, "cpu", torch.float32)
    questions = [SpokenQuestion(str(i), np.arange(5 + i) % 9, ("w1 w2",)) for i in range(3)]
    examples = [(speech_span([1, 2, 3]), text_span([5, 6]))]
    answers = answer_questions(model, questions, lambda ids: "so w1 w2 then", examples=examples, max_tokens=3)
    assert (answers.accuracy, answers.exact, answers.count) == (1.0, 0.0, 3)
    spoken = answer_questions(
        model, questions, decode, to="speech", transcribe=lambda units: "w1 w2", max_tokens=3
    )  # fmt: skip
    assert spoken.exact == 1.0
    with pytest.raises(UserError, match="need a judge"):
        answer_questions(model, questions, decode, to="speech")


@pytest.mark.parametrize("fixed", [False, True])
def test_speed_reports_steps_and_caches_of_both(fixed: bool) -> None:
    lst, baseline = (
        measure(random_model(c, "cpu", torch.float32), prompt=64, tokens=65, batch=2, repeats=1, fixed_shapes=fixed)
        for c in (CONFIG, BASELINE)
    )
    assert (lst.global_steps, baseline.global_steps) == (16, 64)
    assert (lst.global_passes, baseline.global_passes) == (16, 64), "prompts of 64 and 65 units"
    assert lst.global_cache < 0.4 * baseline.global_cache
    assert lst.tokens == baseline.tokens == 130
    assert lst.operators > 0
    assert "| global steps a response | 16 | 64 | 0.25 |" in table(lst, baseline)
