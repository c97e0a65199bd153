"""lm-eval (the `lm_eval` package) on an exported LST: every text task of the harness, T -> T.

    lm = make_harness_model("exports/lst", encode, decode)
    lm_eval.simple_evaluate(model=lm, tasks=["hellaswag", "arc_easy"])

or `lst eval harness`.  The class is made when lm_eval is there; without it `make_harness_model` says how to get it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.evaluation.choice import score_chunks
from megatron_lst.evaluation.items import ScoredChunk, scored_chunk
from megatron_lst.inference import GenerationSettings, generate, load_export
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.model import LatentSpeechTextModel
from megatron_lst.patching.chunks import prompt_tokens, text_span
from megatron_lst.patching.strategies import static_patcher
from megatron_lst.vocabulary import Vocabulary

Encode = Callable[[str, bool], list[int]]
Decode = Callable[[list[int]], str]
_TEXT = static_patcher(1)
"""There is only text, whose pieces are units."""
LONGEST_ANSWER = 256
"""Pieces of a generated answer where the task does not say."""


@dataclass(frozen=True)
class TextRequests:
    """Makes documents of what the harness asks about plain strings.

    Words are encoded one by one, so white space at the join of context and continuation does not count.

    Args:
        encode: (text, continuing) -> ids.
        units: longest context; longer contexts lose their beginning, as in the harness's own models.
    """

    encode: Encode
    vocabulary: Vocabulary
    units: int

    def pair(self, name: str, context: str, continuation: str) -> ScoredChunk:
        """The continuation of a context is scored.

        Raises:
            UserError: the continuation is empty, or longer than the context; names the request.
        """
        before = self.encode(context.rstrip(), False) if context.strip() else []
        after = self.encode(continuation.strip(), bool(before))
        if not after:
            raise UserError(f"request {name}: the continuation {continuation!r} is empty")
        if len(after) >= self.units:
            raise UserError(f"request {name}: a continuation of {len(after)} pieces, the context is {self.units}")
        before = before[max(0, len(before) + len(after) + 1 - self.units) :]
        return scored_chunk((text_span(before), text_span(after)), 1, self.vocabulary, _TEXT, name)

    def whole(self, name: str, text: str) -> list[ScoredChunk]:
        """A whole text in windows of the context without overlap; none for an empty text."""
        ids = self.encode(text, False)
        windows = (ids[begin : begin + self.units - 1] for begin in range(0, len(ids), self.units - 1))
        return [scored_chunk([text_span(window)], 0, self.vocabulary, _TEXT, name) for window in windows]


class TextScorer:
    """What the harness asks of a model, on plain strings; see `TextRequests`.

    Args:
        batch: prompts that are continued together.
    """

    def __init__(
        self, model: LatentSpeechTextModel, encode: Encode, decode: Decode, units: int = 4096, batch: int = 8
    ) -> None:
        self.model, self.encode, self.decode, self.units, self.batch = model, encode, decode, units, batch
        self._text = TextRequests(encode, model.vocabulary, units)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether it is the greedy one) for each (context, continuation).

        Raises:
            UserError: a continuation is empty, or longer than the context; names the request.
        """
        chunks = [self._text.pair(str(number), *pair) for number, pair in enumerate(pairs)]
        scores = score_chunks(chunks, self.model.score, self.model.vocabulary, self.units)
        return [(float(s.sum(dtype=np.float64)), self._is_greedy(one)) for s, one in zip(scores, chunks, strict=True)]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """log p of whole texts, in windows of the context without overlap; 0 for an empty text."""
        found = [self._text.whole(str(number), text) for number, text in enumerate(texts)]
        windows = [window for mine in found for window in mine]
        owners = [number for number, mine in enumerate(found) for _ in mine]
        totals = [0.0] * len(texts)
        scores = score_chunks(windows, self.model.score, self.model.vocabulary, self.units) if windows else []
        for number, values in zip(owners, scores, strict=True):
            totals[number] += float(values.sum(dtype=np.float64))
        return totals

    def generate_until(
        self, prompts: Sequence[str], stops: Sequence[Sequence[str]], settings: GenerationSettings
    ) -> list[str]:
        """Continuations, each cut at the first of its stop strings; long prompts lose their beginning."""
        room = self.units - settings.max_tokens - 1
        if room < 1:
            raise UserError(f"an answer of {settings.max_tokens} pieces leaves no room in a context of {self.units}")
        spans = [text_span(self.encode(p.rstrip(), False)[-room:]) for p in prompts]
        ids = [prompt_tokens([span], self.model.vocabulary) for span in spans]
        answers = []
        for begin in range(0, len(ids), self.batch):
            results, _ = generate(self.model, ids[begin : begin + self.batch], settings)
            for result, until in zip(results, stops[begin : begin + self.batch], strict=True):
                said = self.decode(result.tokens)
                cuts = [said.find(s) for s in until if s and s in said]
                answers.append(said[: min(cuts)] if cuts else said)
        return answers

    def _is_greedy(self, one: ScoredChunk) -> bool:
        tokens, scored = one.chunk.tokens, one.scored
        counter = self.model.counters(1)[0]
        outputs = self.model.advance([counter.add(tokens)], Cache(self.model.config, 1, one_call=True))
        best = outputs.logits(scored).argmax(-1).cpu().numpy()
        return bool((best == tokens[scored + 1]).all())


_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the longest answer, the first that is given counts, as everywhere in lm-eval."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_return_sequences": (1,), "repetition_penalty": (1,), "length_penalty": (1,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "no_repeat_ngram_size": (0,), "early_stopping": (False,),
    "use_cache": (True, False),
}  # fmt: skip
"""Options that this loop does not have, at the values that ask for nothing."""


def generation_settings(options: dict[str, Any], units: int) -> GenerationSettings:
    """What a task's `generation_kwargs` ask for, as far as this loop has it. Null is as if not given. Greedy, unless
    `do_sample` is set, or it is not given and `temperature` is above 0: lm-eval's own rule.

    Raises:
        UserError: an option that this loop does not have, or a value that means nothing; names it.
    """
    left = {name: value for name, value in options.items() if value is not None and name != "until"}
    limits = [left.pop(name) for name in _LIMITS if name in left]
    sampled, temperature = left.pop("do_sample", None), left.pop("temperature", None)
    for name, harmless in _NEUTRAL.items():
        if left.get(name) in harmless:
            del left[name]
    top_p, top_k = left.pop("top_p", 1.0), left.pop("top_k", 0)
    if left:
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(left.items()))
        raise UserError(f"generation options of the task that this loop does not have: {listed}")
    if sampled is None:
        sampled = bool(temperature)
    try:
        return GenerationSettings(
            max_tokens=min(int(limits[0]) if limits else LONGEST_ANSWER, units // 2),
            modality="text",
            temperature=float(1.0 if temperature is None else temperature) if sampled else 0.0,
            top_p=float(top_p),
            top_k=max(0, int(top_k)),  # -1 is vLLM's "no limit"
            context=units,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"generation options of the task: {error}") from None


def stop_strings(options: dict[str, Any]) -> list[str]:
    """Where a task's answers end: `until`, a text, several, or null for none.

    Raises:
        UserError: something else.
    """
    until = options.get("until")
    found = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise UserError(f"generation options of the task: until={until!r}: expected texts")
    return [text for text in found if text]


def make_harness_model(
    folder: Path | str, encode: Encode, decode: Decode, device: str = "cpu", units: int = 4096, batch: int = 8
) -> Any:
    """An `lm_eval.api.model.LM` over an exported model.

    Raises:
        UserError: lm_eval is not installed.
    """
    require_harness()
    return harness_model(TextScorer(load_export(folder).model(device=device), encode, decode, units, batch))


def require_harness() -> None:
    """
    Raises:
        UserError: lm_eval is not installed.
    """
    try:
        import lm_eval.api.model  # noqa: F401
    except ImportError as error:
        raise UserError(f"tasks of lm-eval need lm_eval ({error}): pip install 'megatron-lst[harness]'") from None


def harness_model(scorer: TextScorer) -> Any:
    """An `lm_eval.api.model.LM` that answers by a scorer. lm_eval must be there."""
    from lm_eval.api.model import LM

    units = scorer.units

    class HarnessModel(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return scorer.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            return scorer.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            groups: dict[GenerationSettings, list[int]] = {}
            for number, request in enumerate(requests):
                groups.setdefault(generation_settings(request.args[1], units), []).append(number)
            found: dict[int, str] = {}
            for settings, members in groups.items():
                prompts = [requests[i].args[0] for i in members]
                stops = [stop_strings(requests[i].args[1]) for i in members]
                found.update(zip(members, scorer.generate_until(prompts, stops, settings), strict=True))
            return [found[i] for i in range(len(requests))]

    return HarnessModel()
