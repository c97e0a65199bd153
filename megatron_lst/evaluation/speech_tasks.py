"""Tasks that generate: speech recognition, speech synthesis, spoken questions (SPEC 9). They need an exported model.

ASR  BOS <s> speech <t>   -> text      context units are 1/p of the unpatched model's
TTS  BOS <t> text <s>     -> speech    global steps are 1/p of the tokens that are generated
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.error_rates import ErrorRate, error_rate
from megatron_lst.evaluation.generated import Answers, grade_answers
from megatron_lst.inference import Generated, GenerationSettings, LatentSpeechTextModel, generate
from megatron_lst.patching.chunks import Span, prompt_tokens, speech_span, text_span

Decode = Callable[[list[int]], str]
Progress = Callable[[int, int], None]
ASR_TOKENS, TTS_SECONDS = 400, 30.0
"""Length caps: 400 pieces of text, 30 seconds of speech tokens."""


@dataclass(frozen=True)
class Judged:
    """What a judge hears in speech tokens, against the text: word and character error rate."""

    wer: ErrorRate
    cer: ErrorRate


def judged(written: Sequence[str], said: Sequence[str], language: str = "en") -> Judged:
    """Both error rates of the same transcripts."""
    return Judged(*(error_rate(written, said, unit, language) for unit in ("word", "character")))


@dataclass
class Recognition:
    """ASR over documents.

    Attributes:
        hypotheses: text of each document that was transcribed, in order.
        context_units: units of all prompts; context_tokens: their tokens, which an unpatched model would read as units.
        refused: document id -> why it was left out.
        judged: what a judge hears in the same speech tokens, where there was one.
    """

    wer: ErrorRate
    cer: ErrorRate
    hypotheses: dict[str, str]
    context_units: int
    context_tokens: int
    refused: dict[str, str] = field(default_factory=dict)
    judged: "Judged | None" = None


@dataclass
class Synthesis:
    """TTS over documents.

    Attributes:
        speech_ids: int32 ids of each response, by document.
        global_steps: of all responses; generated: their tokens.
        judged: of what the model said, as a judge hears it; floor: of the documents' own speech tokens, which went
            through the same vocoder to the same judge. None without a judge.
    """

    speech_ids: dict[str, np.ndarray]
    global_steps: int
    generated: int
    judged: Judged | None = None
    floor: Judged | None = None
    refused: dict[str, str] = field(default_factory=dict)


def _prompts(
    documents: Sequence[Document], context: int, build: Callable[[Document], list[int]], refused: dict[str, str]
) -> tuple[list[Document], list[list[int]]]:
    kept, prompts = [], []
    for document in documents:
        prompt = build(document)
        if len(prompt) >= context:
            refused[document.id] = f"prompt of {len(prompt)} tokens, the context is {context}"
        elif not document.has_speech or not len(document.token_ids):
            refused[document.id] = "speech or text is missing"
        else:
            kept.append(document)
            prompts.append(prompt)
    if not kept:
        raise UserError(f"no document can be used: {'; '.join(f'{k}: {v}' for k, v in list(refused.items())[:3])}")
    return kept, prompts


def _generate(
    model: LatentSpeechTextModel,
    prompts: list[list[int]],
    settings: GenerationSettings,
    batch: int,
    progress: Progress,
) -> list[Generated]:
    """Prompts of similar length together; results in the given order."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Generated] = {}
    for begin in range(0, len(order), batch):
        group = order[begin : begin + batch]
        results, _ = generate(model, [prompts[i] for i in group], settings)
        found.update(zip(group, results, strict=True))
        progress(len(found), len(order))
    return [found[i] for i in range(len(prompts))]


def recognise(
    model: LatentSpeechTextModel,
    documents: Sequence[Document],
    decode: Decode,
    *,
    max_tokens: int = ASR_TOKENS,
    context: int = 12288,
    batch: int = 8,
    transcribe: Callable[[np.ndarray], str] | None = None,
    language: str = "en",
    progress: Progress = lambda done, total: None,
) -> Recognition:
    """Transcribe speech documents greedily, and compare with their text.

    Args:
        transcribe: speech ids -> text by a judge (`recogniser.open_judge` behind a vocoder), to stand beside.
        language: whose normaliser the texts go through.
    """
    v = model.vocabulary
    refused: dict[str, str] = {}
    kept, prompts = _prompts(
        documents,
        context,
        lambda d: prompt_tokens([speech_span(d.speech_ids)], v, then="text"),
        refused,
    )
    settings = GenerationSettings(max_tokens=max_tokens, modality="text")
    results = _generate(model, prompts, settings, batch, progress)
    said = [decode(r.tokens) for r in results]
    written = [d.text for d in kept]
    own = judged(written, said, language)
    return Recognition(
        own.wer,
        own.cer,
        {d.id: s for d, s in zip(kept, said, strict=True)},
        sum(r.prompt_units for r in results),
        sum(len(p) for p in prompts),
        refused,
        None if transcribe is None else judged(written, [transcribe(d.speech_ids) for d in kept], language),
    )


def synthesise(
    model: LatentSpeechTextModel,
    documents: Sequence[Document],
    *,
    max_tokens: int | None = None,
    temperature: float = 0.8,
    seed: int = 0,
    context: int = 12288,
    batch: int = 8,
    transcribe: Callable[[np.ndarray], str] | None = None,
    language: str = "en",
    progress: Progress = lambda done, total: None,
) -> Synthesis:
    """Speak the documents' texts.

    Args:
        max_tokens: longest response; None: as many as TTS_SECONDS have.
        transcribe: speech ids -> text, for the error rates (`recogniser.open_judge` behind a vocoder).
        language: whose normaliser the texts go through.
    """
    v = model.vocabulary
    most = max_tokens or v.speech_tokens(TTS_SECONDS)
    refused: dict[str, str] = {}
    kept, prompts = _prompts(
        documents,
        context,
        lambda d: prompt_tokens([text_span(d.token_ids)], v, then="speech", leading_marker=True),
        refused,
    )
    settings = GenerationSettings(max_tokens=most, modality="speech", temperature=temperature, seed=seed)
    results = _generate(model, prompts, settings, batch, progress)
    ids = {d.id: np.array([t - v.text_size for t in r.tokens], np.int32) for d, r in zip(kept, results, strict=True)}
    result = Synthesis(ids, sum(r.units for r in results), sum(len(r.tokens) for r in results), refused=refused)
    if transcribe is not None:
        written = [d.text for d in kept]
        result.judged = judged(written, [transcribe(ids[d.id]) for d in kept], language)
        result.floor = judged(written, [transcribe(d.speech_ids) for d in kept], language)
    return result


@dataclass(frozen=True)
class SpokenQuestion:
    """A question as speech ids, and the answers that count."""

    id: str
    speech_ids: np.ndarray
    answers: tuple[str, ...]


def answer_questions(
    model: LatentSpeechTextModel,
    questions: Sequence[SpokenQuestion],
    decode: Decode,
    *,
    examples: Sequence[tuple[Span, Span]] = (),
    to: str = "text",
    transcribe: Callable[[np.ndarray], str] | None = None,
    max_tokens: int = 64,
    batch: int = 8,
    progress: Progress = lambda done, total: None,
) -> Answers:
    """Spoken question answering, few-shot by `examples` (question, answer).

    Args:
        to: `text` (S -> T), or `speech` (S -> S), which needs `transcribe`.

    Raises:
        UserError: speech without a judge.
    """
    if to == "speech" and transcribe is None:
        raise UserError("answers in speech need a judge to be graded")
    v = model.vocabulary
    prompts = []
    for question in questions:
        spans = [span for pair in examples for span in pair] + [speech_span(question.speech_ids)]
        prompts.append(prompt_tokens(spans, v, then="text" if to == "text" else "speech"))
    settings = GenerationSettings(max_tokens=max_tokens, modality="text" if to == "text" else "speech")
    results = _generate(model, prompts, settings, batch, progress)
    said = []
    for result in results:
        if to == "text":
            said.append(decode(result.tokens))
        else:
            assert transcribe is not None
            said.append(transcribe(np.array([t - v.text_size for t in result.tokens], np.int32)))
    return grade_answers(said, [q.answers for q in questions])
