"""Generation: cached equals uncached, global steps 1/p, sampling and stop rules, prompts of different lengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import GenerationSettings, LatentSpeechTextModel, generate
from megatron_lst.inference.generation import Sampler, allowed_tokens
from megatron_lst.patching.row import assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary
from tests.support.causality import Writer

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=6,
    init_std=0.5,
)  # fmt: skip
SIZE = 4


def model_of(**options: object) -> tuple[ReferenceModel, LatentSpeechTextModel]:
    config = replace(TINY, **options)  # type: ignore[arg-type]
    oracle = ReferenceModel(config, V, seed=2).double()
    size = 1 if config.kind == "baseline" else SIZE
    return oracle, LatentSpeechTextModel.from_weights(config, V, oracle.state_dict(), size)


def dense_continuation(oracle: ReferenceModel, size: int, prompt: list[int], steps: int, modality: str) -> list[int]:
    """Greedy continuation by the oracle on the whole sequence at every step, maps from scratch."""
    tokens, out = list(prompt), []
    forbidden = torch.from_numpy(~allowed_tokens(V, modality))
    for _ in range(steps):
        writer = Writer(V, "static", size)
        for token in tokens:
            if V.is_speech(np.array(token)):
                writer.speech(token - V.text_size)
            else:
                writer.other(token)
        chunk = writer.chunk()
        with torch.no_grad():
            logits = oracle(assemble_row([chunk], len(chunk.patch_length), V))[-1]
        token = int(logits.masked_fill(forbidden, float("-inf")).argmax())
        if token == V.eos:
            break
        tokens.append(token)
        out.append(token)
    return out


VARIANTS: list[dict[str, object]] = [
    {}, {"text_path": "direct"}, {"kind": "baseline"}, {"decoder_window_units": 3}, {"pooling": "mean"},
    {"cross_rope": True, "decoder_input": "embedding"},
    {
        "kv_heads": 1, "qk_norm": True, "qkv_bias": True, "head_size": 10, "no_rope_every": 2,
        "rope_scaling": RopeScalingConfig("llama3", factor=4.0, context=16),
    },
]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("modality", ["speech", "text", "any"])
@pytest.mark.parametrize("fixed", [False, True])
def test_batched_generation_equals_the_oracle_token_by_token(
    options: dict[str, object], modality: str, fixed: bool
) -> None:
    oracle, model = model_of(**options)
    marker = V.text_marker if modality == "text" else V.speech_marker
    prompts = [
        [V.bos, V.speech_marker, *range(25, 31), *([] if modality != "text" else [V.text_marker])],
        [V.bos, 5, 6, 7, marker],
        [V.bos, V.text_marker, 9, marker],
    ]
    settings = GenerationSettings(max_tokens=13, modality=modality, fixed_shapes=fixed)  # type: ignore[arg-type]
    results, _ = generate(model, prompts, settings)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.tokens == dense_continuation(oracle, model.patch_size, prompt, 13, modality)


def test_global_steps_are_a_pth_of_the_tokens_and_the_cache_shrinks_with_them() -> None:
    _, lst = model_of()
    _, baseline = model_of(kind="baseline")
    settings = GenerationSettings(max_tokens=41, min_tokens=41, modality="speech")
    prompt = [V.bos, V.speech_marker]
    (patched,), fast = generate(lst, [prompt], settings)
    (unpatched,), slow = generate(baseline, [prompt], settings)
    assert len(patched.tokens) == len(unpatched.tokens) == 41
    assert patched.units == 10, "40 fed tokens in patches of 4"
    assert unpatched.units == 40
    assert (patched.prompt_units, unpatched.prompt_units) == (2, 2)
    assert fast.cache_bytes["global"] <= slow.cache_bytes["global"] / 2


@pytest.mark.parametrize("fixed", [False, True])
def test_patches_that_began_apart_close_together(fixed: bool) -> None:
    _, model = model_of()
    prompts = [[V.bos, V.speech_marker, *range(25, 25 + n)] for n in (0, 1, 2, 3, 5)]
    settings = GenerationSettings(
        max_tokens=41, min_tokens=41, modality="speech", temperature=1.0, log_probabilities=True, fixed_shapes=fixed
    )
    together, timing = generate(model, prompts, settings)
    assert timing.global_passes == 10, "a quarter of the 40 fed tokens"
    assert [result.units for result in together] == [10, 10, 10, 10, 10]
    apart, alone = generate(model, prompts, replace(settings, close_together=False))
    assert alone.global_passes == 40, "without waiting some patch closes in every step"
    for a, b in zip(together, apart, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, rtol=1e-10)


def test_a_neighbour_changes_nothing_and_the_seed_decides() -> None:
    _, model = model_of()
    prompts = [[V.bos, V.speech_marker, 25, 26], [V.bos, 5, 6, 7, 8, V.speech_marker]]
    settings = GenerationSettings(max_tokens=20, modality="speech", temperature=1.0, top_p=0.9, seed=5)
    together, _ = generate(model, prompts, settings)
    alone, _ = generate(model, prompts[:1], settings)
    assert together[0].tokens == alone[0].tokens
    assert generate(model, prompts, settings)[0][1].tokens == together[1].tokens
    other, _ = generate(model, prompts, replace(settings, seed=6))
    assert other[0].tokens != together[0].tokens


def test_log_probabilities_are_the_models_own() -> None:
    _, model = model_of()
    prompt = [V.bos, V.speech_marker, 25, 26]
    settings = GenerationSettings(
        max_tokens=9, min_tokens=9, modality="speech", temperature=0.7, top_k=3, log_probabilities=True
    )
    (result,), _ = generate(model, [prompt], settings)
    writer = Writer(V, "static", SIZE)
    for token in prompt + result.tokens:
        writer.speech(token - V.text_size) if V.is_speech(np.array(token)) else writer.other(token)
    chunk = writer.chunk()
    row = assemble_row([chunk], len(chunk.patch_length), V)
    scores = model.score([row])[0]
    np.testing.assert_allclose(result.log_probabilities, scores[len(prompt) - 1 : -1], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"text_path": "direct"}, {"kind": "baseline"}])
@pytest.mark.parametrize(("modality", "few"), [("speech", True), ("text", False), ("any", False)])
def test_logits_that_cannot_be_drawn_are_left_out(options: dict[str, object], modality: str, few: bool) -> None:
    """The same tokens as with every logit, from fewer rows of the head where they are few."""
    _, model = model_of(**options)
    settings = GenerationSettings(max_tokens=15, modality=modality, temperature=1.0, seed=3)  # type: ignore[arg-type]
    wanted = Sampler(settings, V, model.device).wanted
    assert (wanted is not None) == few
    if wanted is not None:
        assert wanted.tolist() == np.flatnonzero(allowed_tokens(V, modality)).tolist()
    last = V.text_marker if modality == "text" else V.speech_marker
    prompts = [[V.bos, 5, 6, last], [V.bos, V.speech_marker, 25, 26, *([last] if modality == "text" else [])]]
    brief, _ = generate(model, prompts, settings)
    whole, _ = generate(model, prompts, replace(settings, log_probabilities=True))
    assert [r.tokens for r in brief] == [r.tokens for r in whole]
    assert [len(r.log_probabilities) for r in whole] == [len(r.tokens) for r in whole]
    assert not any(r.log_probabilities for r in brief)


def test_sampling_follows_the_distribution_and_its_restrictions() -> None:
    logits = torch.randn(1, V.padded_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def frequencies(**options: object) -> np.ndarray:
        settings = GenerationSettings(**{"temperature": 1.0, **options})  # type: ignore[arg-type]
        sampler = Sampler(settings, V, torch.device("cpu"))
        n = 4000
        given = logits if sampler.wanted is None else logits[:, sampler.wanted]
        tokens, _ = sampler.draw(given.expand(n, -1), [0] * n, list(range(n)), [0] * n)
        return np.bincount(tokens, minlength=V.padded_size) / n

    allowed = allowed_tokens(V, "speech")
    expected = logits[0].masked_fill(torch.from_numpy(~allowed), float("-inf")).softmax(-1).numpy()
    np.testing.assert_allclose(frequencies(modality="speech"), expected, atol=0.03)
    top = np.argsort(-expected)[:2]
    assert set(np.flatnonzero(frequencies(modality="speech", top_k=2))) == set(top)
    nucleus = np.searchsorted(np.cumsum(np.sort(expected)[::-1]), 0.5) + 1
    assert (frequencies(modality="speech", top_p=0.5) > 0).sum() == nucleus
    early = frequencies(modality="speech", min_tokens=4000, max_tokens=4000)
    assert early[V.eos] == 0
    for modality in ("speech", "text", "any"):
        drawn = np.flatnonzero(frequencies(modality=modality, temperature=5.0))
        assert not {V.bos, V.pad} & set(drawn)
        assert drawn.max() < V.used_size


def test_stops_at_a_marker_at_eos_at_the_cap_and_at_the_context() -> None:
    _, model = model_of()
    head = model.decoder.head.weight
    bias = model.decoder.norm.weight
    prompt = [V.bos, V.speech_marker, 25]

    def push(token: int) -> None:
        """Make one token win: its head row follows the hidden state's sign on average."""
        head.zero_()
        bias.fill_(1.0)
        head[token] = hidden

    # The hidden state at the last prompt position, read off with an identity head.
    hidden = torch.zeros(8, dtype=torch.float64)
    saved = head.clone()
    head.zero_()
    head[:8] = torch.eye(8, dtype=torch.float64)
    from megatron_lst.inference.cache import Cache

    hidden = model.advance([model.counters(1)[0].add(prompt)], Cache(model.config, 1)).logits(np.array([2]))[0, :8]
    for token, finish in ((V.eos, "eos"), (V.text_marker, "marker")):
        push(token)
        (result,), _ = generate(model, [prompt], GenerationSettings(max_tokens=5, stop_at_marker=True))
        assert (result.finish, result.tokens) == (finish, [])
    head.copy_(saved)
    settings = GenerationSettings(max_tokens=5, min_tokens=5, modality="speech")
    (result,), _ = generate(model, [prompt], settings)
    assert (result.finish, len(result.tokens)) == ("length", 5)
    (result,), _ = generate(model, [prompt], replace(settings, context=6))
    assert (result.finish, len(result.tokens)) == ("length", 3)


@pytest.mark.parametrize(
    ("prompt", "modality", "message"),
    [
        ([], "any", "prompt 0 is empty"),
        ([25, 26], "any", "begins with speech"),
        ([V.bos, V.used_size], "any", "outside the vocabulary"),
        ([V.bos, 5], "speech", "ends in text mode"),
        ([V.bos, V.speech_marker], "text", "ends in speech mode"),
        ([V.bos] * 20, "any", "has 20 tokens, the context is 20"),
    ],
)
def test_refuses_prompts_by_number(prompt: list[int], modality: str, message: str) -> None:
    _, model = model_of()
    with pytest.raises(UserError, match=message):
        generate(model, [prompt], GenerationSettings(modality=modality, context=20))  # type: ignore[arg-type]
