"""Patch by patch generation (SPEC 9): encoder and decoder run per token, the global transformer once per unit.

Prompts of different lengths go together; a sequence's samples depend on (seed, its place in the batch, the step)
alone, never on its neighbours.  Their patches close together too: whoever would close one waits for those that still
fill theirs, so that one pass of the global transformer serves all of them, and its weights are read once for p tokens.

Where a frame is several codes, only the codebook whose turn it is can be drawn, and a response holds whole frames.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megatron_lst.errors import UserError
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.fixed import FixedDecoder
from megatron_lst.inference.inputs import EMPTY, PatchCounter
from megatron_lst.inference.model import LatentSpeechTextModel
from megatron_lst.vocabulary import Vocabulary

Finish = Literal["eos", "stop", "marker", "length"]


@dataclass(frozen=True)
class GenerationSettings:
    """How to continue prompts.

    Attributes:
        max_tokens: length cap of the response (TTS: the speech tokens of 30 s; ASR: 400 pieces). A frame that does not
            fit is not begun.
        min_tokens: EOS and markers are not allowed before.
        modality: what may be sampled beside EOS: speech units, text pieces, or anything with markers.
        temperature: 0 takes the most likely token.
        top_p: smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: at most this many tokens; 0 keeps all.
        stop_at_marker: modality `any`: stop at the first `<t>` or `<s>`.
        stop: tokens beside EOS that end a response, such as the end of a turn; they may be sampled in any modality.
        context: most tokens of prompt and response together; None: no limit.
        log_probabilities: also say how likely the model found each token. That takes the logits of the whole
            vocabulary, where speech alone can be drawn from its own few hundred.
        close_together: modality `speech`: a sequence whose patch is full waits for the others, at most p - 1 steps, so
            that one pass of the global transformer serves all of them.
        seed: of sampling.
        fixed_shapes: decode with `FixedDecoder`, as CUDA graphs on a GPU; None: on a GPU.
    """

    max_tokens: int = 750
    min_tokens: int = 0
    modality: Literal["speech", "text", "any"] = "any"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop_at_marker: bool = False
    stop: tuple[int, ...] = ()
    context: int | None = None
    log_probabilities: bool = False
    close_together: bool = True
    seed: int = 0
    fixed_shapes: bool | None = None

    def __post_init__(self) -> None:
        """Raises UserError: a value that means nothing; names it."""
        if self.modality not in ("speech", "text", "any"):
            raise UserError(f"generation: modality={self.modality!r}: expected speech, text or any")
        for name, kinds, right, wanted in (
            ("max_tokens", int, lambda n: n >= 1, "a whole number above 0"),
            ("min_tokens", int, lambda n: 0 <= n <= self.max_tokens, f"0 to max_tokens={self.max_tokens}"),
            ("temperature", (int, float), lambda x: 0 <= x < math.inf, "0 or a number above it"),
            ("top_p", (int, float), lambda x: 0 < x <= 1, "above 0, at most 1"),
            ("top_k", int, lambda n: n >= 0, "0 or a whole number above it"),
            ("seed", int, lambda n: 0 <= n < 1 << 64, "a whole number of at most 64 bits"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds) or not right(value):
                raise UserError(f"generation: {name}={value!r}: expected {wanted}")


@dataclass
class Generated:
    """The continuation of one prompt.

    Attributes:
        tokens: sampled ids, the stopping EOS, marker or `stop` left out.
        log_probabilities: of each of `tokens` under the unrestricted, untempered model, nats, where asked for.
        finish: what ended it.
        prompt_units, units: units that went through the global transformer for the prompt and for the response.
    """

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    finish: Finish = "length"
    prompt_units: int = 0
    units: int = 0


@dataclass
class Timing:
    """What a call cost.

    Attributes:
        first_token: seconds until the first token of every response (prefill included).
        prepared: seconds between the first and the second token in which fixed shapes were laid out and, on a GPU,
            captured.
        seconds: of the whole call.
        tokens: sampled, all responses together.
        global_passes: steps of the responses in which units of any of them went through the global transformer.
        cache_bytes: allocated by each module's caches at the end.
    """

    first_token: float = 0.0
    prepared: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    global_passes: int = 0
    cache_bytes: dict[str, int] = field(default_factory=dict)


def allowed_tokens(vocabulary: Vocabulary, modality: str) -> np.ndarray:
    """bool [padded_size]: what may be sampled; BOS, PAD and unused ids never."""
    allowed = np.zeros(vocabulary.padded_size, bool)
    if modality in ("text", "any"):
        allowed[: vocabulary.pieces] = True
    if modality in ("speech", "any"):
        allowed[vocabulary.text_size : vocabulary.text_size + vocabulary.speech_size] = True
    if modality == "any":
        allowed[[vocabulary.text_marker, vocabulary.speech_marker]] = True
    allowed[vocabulary.bos] = False
    allowed[vocabulary.eos] = True
    return allowed


@dataclass
class Held:
    """What earlier calls read and said: the next one goes on from there."""

    cache: Cache
    counters: list[PatchCounter]

    @classmethod
    def of(cls, model: LatentSpeechTextModel, count: int) -> "Held":
        """Of `count` sequences that have not begun."""
        return cls(Cache(model.config, count), model.counters(count))


def check_prompt(
    prompt: Sequence[int], vocabulary: Vocabulary, settings: GenerationSettings, index: int, before: int = 0
) -> None:
    """Refuse a prompt that the model cannot continue as asked.

    Args:
        before: tokens of the sequence that the model holds already.

    Raises:
        UserError: names the prompt.
    """
    where = f"prompt {index}"
    if not len(prompt):
        raise UserError(f"{where} is empty; begin with BOS")
    ids = np.asarray(prompt)
    if ((ids < 0) | (ids >= vocabulary.used_size)).any():
        raise UserError(f"{where}: token ids outside the vocabulary of {vocabulary.used_size}")
    if vocabulary.is_speech(ids[:1])[0] and not before:
        raise UserError(f"{where} begins with speech; begin with BOS and <s>")
    if (fault := vocabulary.frame_fault(ids)) is not None:
        raise UserError(f"{where}, token {fault[0]}: {fault[1]}")
    if settings.context is not None and before + len(prompt) >= settings.context:
        raise UserError(f"{where} has {before + len(prompt)} tokens, the context is {settings.context}")
    if settings.modality == "speech" and _room_for(before + len(prompt), 0, settings) < vocabulary.depth:
        raise UserError(
            f"{where}: max_tokens={settings.max_tokens} and context={settings.context} leave no room for a frame of "
            f"{vocabulary.depth} tokens"
        )
    in_speech = bool(vocabulary.is_speech(ids[-1:])[0]) or prompt[-1] == vocabulary.speech_marker
    if settings.modality == "speech" and not in_speech:
        raise UserError(f"{where} ends in text mode; end with <s> to ask for speech")
    if settings.modality == "text" and in_speech:
        raise UserError(f"{where} ends in speech mode; end with <t> to ask for text")


def _room_for(before: int, done: int, settings: GenerationSettings) -> int:
    """Tokens that may still follow `done` tokens of a response, before which stand `before`."""
    room = settings.max_tokens - done
    return room if settings.context is None else min(room, settings.context - before - done)


class Sampler:
    """Draws one token for each of several sequences; one uniform number each, keyed by (seed, sequence, step).

    Attributes:
        wanted: ids [A] whose logits `draw` takes, increasing; None: of the whole vocabulary.
    """

    def __init__(self, settings: GenerationSettings, vocabulary: Vocabulary, device: torch.device) -> None:
        self.settings = settings
        allowed = allowed_tokens(vocabulary, settings.modality)
        allowed[list(settings.stop)] = True
        ids = np.flatnonzero(allowed)
        closing = np.isin(ids, [vocabulary.eos, vocabulary.text_marker, vocabulary.speech_marker, *settings.stop])
        self.ids, self.closing = torch.from_numpy(ids).to(device), torch.from_numpy(closing).to(device)
        # bool [Q, A]: inside a frame the next codebook alone, between frames all but the codebooks after the first.
        speech, book = vocabulary.is_speech(ids), vocabulary.codebook_of(ids)
        turns = np.stack([speech & (book == turn) for turn in range(vocabulary.depth)])
        turns[0] |= ~speech
        self.turns = torch.from_numpy(turns).to(device) if vocabulary.depth > 1 else None
        # Rows of the head are gathered each step: worth it for the few hundred of speech, not for most of the head.
        few = 2 * len(ids) < vocabulary.padded_size
        self.wanted = self.ids if few and not settings.log_probabilities else None

    def draw(
        self, logits: Tensor, sequences: Sequence[int], steps: Sequence[int], turns: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """logits [n, V], or [n, A] of `wanted`, of `sequences` at their response's `steps`.

        Args:
            turns: of each sequence, the codebook whose turn it is, `Vocabulary.turn_after` its last token.

        Returns:
            Tokens, and their log-probabilities where the settings ask for them.
        """
        settings = self.settings
        logits = logits.float() if logits.dtype != torch.float64 else logits
        early = torch.tensor([step < settings.min_tokens for step in steps], device=logits.device)
        restricted = logits if self.wanted is not None else logits[:, self.ids]
        restricted = restricted.masked_fill(early[:, None] & self.closing, float("-inf"))
        if self.turns is not None:
            restricted = restricted.masked_fill(~self.turns[torch.tensor(turns, device=logits.device)], float("-inf"))
        if settings.temperature == 0:
            chosen = restricted.argmax(-1)
        else:
            order = torch.sort(restricted / settings.temperature, dim=-1, descending=True, stable=True)
            probability = order.values.softmax(-1)  # [n, A], falling
            cumulative = probability.cumsum(-1)
            kept = cumulative - probability < settings.top_p  # the token that crosses top_p still counts
            if settings.top_k:
                kept[:, settings.top_k :] = False
            probability = probability * kept
            cumulative = probability.cumsum(-1)
            uniform = torch.tensor(
                [
                    np.random.Generator(np.random.Philox(key=[settings.seed, (s << 32) + t])).random()
                    for s, t in zip(sequences, steps, strict=True)
                ],
                dtype=cumulative.dtype,
                device=logits.device,
            )
            place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)  # [n, 1]
            last = (probability > 0).sum(-1, keepdim=True) - 1  # rounding must not lead past what is kept
            chosen = order.indices.gather(-1, torch.minimum(place, last))[:, 0]
        tokens = self.ids[chosen]
        if not settings.log_probabilities:
            return tokens.tolist(), []
        return tokens.tolist(), (logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).tolist()


def stream(
    model: LatentSpeechTextModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    results: list[Generated],
    timing: Timing,
    held: Held | None = None,
) -> Iterator[dict[int, int]]:
    """Generate, yielding {sequence: token} after every step; `results` and `timing` are filled in as it goes.

    Args:
        held: what the model holds of each sequence, to which the prompts are added; it is kept for the next call, so
            fixed shapes, which take the caches over, are not used. None: the sequences begin here.
    """
    vocabulary, count = model.vocabulary, len(prompts)
    state = held or Held.of(model, count)
    cache, counters = state.cache, state.counters
    lengths = [cache.tokens[i] + len(prompt) for i, prompt in enumerate(prompts)]
    for index, prompt in enumerate(prompts):
        check_prompt(prompt, vocabulary, settings, index, cache.tokens[index])
    began = time.perf_counter()
    sampler = Sampler(settings, vocabulary, model.device)
    results[:] = [Generated() for _ in range(count)]
    pending: list[Sequence[int]] = list(prompts)
    active = list(range(count))
    fixed = model.device.type == "cuda" if settings.fixed_shapes is None else settings.fixed_shapes
    fixed = fixed and held is None
    decoder: FixedDecoder | None = None
    while active:
        if fixed and timing.tokens and decoder is None:
            started = time.perf_counter()
            decoder = FixedDecoder(model, cache, counters, _room(model, settings), sampler.wanted)
            timing.prepared = time.perf_counter() - started
        waits = settings.close_together and settings.modality == "speech" and timing.tokens
        moving = _moving(counters, pending, active) if waits else active
        inputs = [counters[i].add(pending[i]) if i in moving else EMPTY for i in range(count)]
        if decoder is None:
            last = np.cumsum([len(p.tokens) for p in inputs])[moving] - 1  # the newest token of each, packed
            logits = model.advance(inputs, cache).logits(last, sampler.wanted)
        else:
            logits = decoder.advance(inputs)
            logits = logits if len(moving) == count else logits[moving]
        steps = [len(results[i].tokens) for i in moving]
        turns = [vocabulary.turn_after((results[i].tokens or prompts[i])[-1]) for i in moving]
        tokens, scores = sampler.draw(logits, moving, steps, turns)
        if not timing.tokens:
            timing.first_token = time.perf_counter() - began
            for i, result in enumerate(results):
                result.prompt_units = cache.units[i]
        else:
            timing.global_passes += any(len(new.lengths) for new in inputs)
        timing.tokens += len(tokens)
        emitted = {}
        for place, (i, token, turn) in enumerate(zip(moving, tokens, turns, strict=True)):
            result, pending[i] = results[i], ()
            left = _room_for(lengths[i], len(result.tokens), settings)
            if token == vocabulary.eos:
                result.finish = "eos"
            elif token in settings.stop:
                result.finish = "stop"
            elif not turn and left < vocabulary.depth and vocabulary.turn_after(token):
                result.finish = "length"  # the first code of a frame that does not fit
            elif settings.stop_at_marker and token in (vocabulary.text_marker, vocabulary.speech_marker):
                result.finish = "marker"
            else:
                result.tokens.append(token)
                result.log_probabilities.extend(scores[place : place + 1])
                emitted[i] = token
                more = vocabulary.depth if settings.modality == "speech" and not vocabulary.turn_after(token) else 1
                if left - 1 >= more:
                    pending[i] = (token,)
            result.units = cache.units[i] - result.prompt_units
        active = [i for i in active if pending[i]]
        timing.seconds = time.perf_counter() - began
        timing.cache_bytes = (decoder or cache).allocated_bytes()
        yield emitted


def _moving(counters: Sequence[PatchCounter], pending: Sequence[Sequence[int]], active: list[int]) -> list[int]:
    """Who takes its next speech unit now: those whose patch it does not close, else all, who then close together.

    Patches are as far apart as their prompts left them, so this delays a response by at most p - 1 steps, once.
    """
    return [i for i in active if counters[i].fills(pending[i][0])] or active


def _room(model: LatentSpeechTextModel, settings: GenerationSettings) -> int:
    """Units that a response may close; the first token of a text may close the prompt's last patch besides."""
    size = model.patch_size if settings.modality == "speech" else 1
    return -(-settings.max_tokens // size) + 1


def generate(
    model: LatentSpeechTextModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[list[Generated], Timing]:
    """Continue prompts.

    Args:
        prompts: token ids, each beginning with BOS or a marker.
        progress: called after every step with the number of tokens sampled so far.

    Raises:
        UserError: a prompt that cannot be continued as asked; names it.
    """
    results: list[Generated] = []
    timing = Timing()
    for _ in stream(model, prompts, settings, results, timing):
        progress(timing.tokens)
    return results, timing
