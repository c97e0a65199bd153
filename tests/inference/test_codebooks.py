"""Generation with frames of several codes: whose turn it is, whole frames, every path, and controls without turns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import GenerationSettings, LatentSpeechTextModel, generate, load_export, write_export
from megatron_lst.inference.generation import Sampler, allowed_tokens
from megatron_lst.patching.chunks import prompt_tokens, speech_span
from megatron_lst.patching.row import assemble_row
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary
from tests.support.causality import Writer

BOOKS = {1: (9,), 4: (5, 3, 4, 6), 8: (3, 4, 2, 5, 3, 4, 2, 3)}
TINY = ModelConfig(
    hidden=16, layers=2, heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=2, window=12,
    init_std=0.5,
)  # fmt: skip
MODELS: dict[str, dict[str, object]] = {
    "lst": {}, "direct": {"text_path": "direct"}, "baseline": {"kind": "baseline"},
}  # fmt: skip


def vocabulary_of(depth: int) -> Vocabulary:
    return Vocabulary(text_size=24, speech_size=sum(BOOKS[depth]), codebooks=BOOKS[depth], multiple=8)


def model_of(v: Vocabulary, frames: int = 1, **options: object) -> tuple[ReferenceModel, LatentSpeechTextModel]:
    config = replace(TINY, **options)  # type: ignore[arg-type]
    oracle = ReferenceModel(config, v, seed=2).double()
    size = 1 if config.kind == "baseline" else frames * v.depth
    return oracle, LatentSpeechTextModel.from_weights(config, v, oracle.state_dict(), size)


def frames_of(v: Vocabulary, rng: np.random.Generator, count: int) -> np.ndarray:
    """Speech ids, int64 [count, Q]."""
    return rng.integers(0, v.codebook_sizes, (count, v.depth)) + v.offsets


def prompts_of(v: Vocabulary) -> list[list[int]]:
    rng = np.random.default_rng(1)
    spoken = [prompt_tokens([speech_span(frames_of(v, rng, n))], v, then="speech") for n in (1, 2, 3, 5)]
    return [*spoken, [v.bos, 5, 6, 7, v.speech_marker]]


def chunk_of(v: Vocabulary, tokens: list[int], size: int):  # type: ignore[no-untyped-def]
    writer = Writer(v, "static", size)
    for token in tokens:
        writer.speech(token - v.text_size) if v.is_speech(np.array(token)) else writer.other(token)
    return writer.chunk()


def dense(
    oracle: ReferenceModel, v: Vocabulary, size: int, prompt: list[int], settings: GenerationSettings
) -> list[int]:
    """Greedy continuation by the oracle from scratch at every step; turns by counting from the marker."""
    tokens, out = list(prompt), list[int]()
    allowed = allowed_tokens(v, settings.modality)
    while len(out) < settings.max_tokens:
        spoken = 0
        while v.is_speech(np.array(tokens[-1 - spoken])):
            spoken += 1
        turn = spoken % v.depth
        if not turn and settings.modality == "speech" and settings.max_tokens - len(out) < v.depth:
            break
        begin = v.text_size + int(v.offsets[turn])
        mine = np.zeros(v.padded_size, bool)
        mine[begin : begin + v.codebook_sizes[turn]] = True
        may = allowed & (mine | ((turn == 0) & ~v.is_speech(np.arange(v.padded_size))))
        chunk = chunk_of(v, tokens, size)
        with torch.no_grad():
            logits = oracle(assemble_row([chunk], len(chunk.patch_length), v))[-1]
        token = int(logits.masked_fill(torch.from_numpy(~may), float("-inf")).argmax())
        if token == v.eos or (not turn and mine[token] and settings.max_tokens - len(out) < v.depth):
            break
        tokens.append(token)
        out.append(token)
    return out


@pytest.mark.parametrize("depth", BOOKS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fixed", [False, True])
def test_generation_is_the_oracles_token_by_token(depth: int, name: str, fixed: bool) -> None:
    v = vocabulary_of(depth)
    oracle, model = model_of(v, frames=2, **MODELS[name])
    for modality in ("speech", "any"):
        settings = GenerationSettings(max_tokens=21, modality=modality, fixed_shapes=fixed)  # type: ignore[arg-type]
        results, _ = generate(model, prompts_of(v), settings)
        for prompt, result in zip(prompts_of(v), results, strict=True):
            assert result.tokens == dense(oracle, v, model.patch_size, prompt, settings)
            assert v.frame_fault(np.array([*prompt, *result.tokens])) is None


@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("more", [{"top_k": 2}, {"top_p": 0.5}, {"temperature": 9.0}, {"log_probabilities": True}])
def test_any_way_of_sampling_gives_whole_frames(depth: int, fixed: bool, more: dict[str, object]) -> None:
    v = vocabulary_of(depth)
    _, model = model_of(v, frames=2)
    settings = GenerationSettings(
        max_tokens=45, min_tokens=30, modality="speech", seed=4, fixed_shapes=fixed,
        **{"temperature": 1.0, **more},  # type: ignore[arg-type]
    )  # fmt: skip
    results, _ = generate(model, prompts_of(v), settings)
    for prompt, result in zip(prompts_of(v), results, strict=True):
        assert v.frame_fault(np.array([*prompt, *result.tokens])) is None
        assert len(result.tokens) % depth == 0
        assert len(result.tokens) >= 32 - depth, "EOS is not allowed before"
        assert len(result.tokens) == 45 // depth * depth or result.finish == "eos"
        if settings.log_probabilities:
            scores = model.score(
                [assemble_row([c := chunk_of(v, prompt + result.tokens, 2 * depth)], len(c.patch_length), v)]
            )
            np.testing.assert_allclose(result.log_probabilities, scores[0][len(prompt) - 1 : -1], rtol=1e-5)


def test_without_turns_frames_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same model and seed, no mask."""
    v = vocabulary_of(8)
    _, model = model_of(v)
    settings = GenerationSettings(max_tokens=40, min_tokens=40, modality="speech", temperature=1.0)
    found = Sampler.__init__

    def no_turns(self: Sampler, *arguments: object) -> None:
        found(self, *arguments)  # type: ignore[arg-type]
        self.turns = None

    monkeypatch.setattr(Sampler, "__init__", no_turns)
    results, _ = generate(model, prompts_of(v), settings)
    assert all(v.frame_fault(np.array([*p, *r.tokens])) for p, r in zip(prompts_of(v), results, strict=True))


def test_patches_of_several_frames_close_together_and_change_nothing() -> None:
    v = vocabulary_of(4)
    _, model = model_of(v, frames=3)
    settings = GenerationSettings(max_tokens=48, min_tokens=48, modality="speech", temperature=1.0)
    together, timing = generate(model, prompts_of(v), settings)
    apart, alone = generate(model, prompts_of(v), replace(settings, close_together=False))
    assert [r.tokens for r in together] == [r.tokens for r in apart]
    assert timing.global_passes == 4 < alone.global_passes, "48 tokens in patches of 12; the last is not fed"


def test_the_context_ends_a_response_at_a_frame() -> None:
    v = vocabulary_of(8)
    _, model = model_of(v)
    prompt = prompts_of(v)[0]
    settings = GenerationSettings(max_tokens=100, min_tokens=50, modality="speech", context=len(prompt) + 21)
    (result,), _ = generate(model, [prompt], settings)
    assert (len(result.tokens), result.finish) == (16, "length")


def test_broken_prompts_and_patches_are_refused() -> None:
    v = vocabulary_of(4)
    _, model = model_of(v)
    speech = (frames_of(v, np.random.default_rng(0), 2) + v.text_size).ravel().tolist()
    settings = GenerationSettings()
    with pytest.raises(UserError, match=r"prompt 0, token 8: speech ends inside a frame, after 3 of its 4 codes"):
        generate(model, [[v.bos, v.speech_marker, *speech[:-1]]], settings)
    with pytest.raises(UserError, match=r"prompt 0, token 2: of codebook 1, not of codebook 0, whose turn it is"):
        generate(model, [[v.bos, v.speech_marker, *speech[1:]]], settings)
    with pytest.raises(UserError, match="no room for a frame of 4 tokens"):
        generate(model, [[v.bos, v.speech_marker]], GenerationSettings(max_tokens=3, modality="speech"))
    with pytest.raises(UserError, match="patch_size=6: a frame is 4 tokens"):
        LatentSpeechTextModel(TINY, v, 6)


def test_exports_and_transformers_give_whole_frames(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    import megatron_lst.hf  # noqa: F401 - registers the classes

    v = vocabulary_of(8)
    oracle, _ = model_of(v, frames=2)
    config = Config(vocabulary=v, model=TINY, patching=PatchingConfig(strategy="static", size=16))
    folder = write_export(tmp_path / "export", {n: w.float() for n, w in oracle.state_dict().items()}, config)
    opened = load_export(folder)
    assert opened.vocabulary.depth == 8
    prompt = prompts_of(v)[2]
    settings = GenerationSettings(max_tokens=40, min_tokens=30, modality="speech")
    (own,), _ = generate(opened.model(), [prompt], settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([prompt])
    theirs = model.generate(ids, max_new_tokens=40, min_new_tokens=30, modality="speech")[0].tolist()
    assert theirs[len(prompt) :][: len(own.tokens)] == own.tokens
    for modality in ("speech", "any"):
        for seed in range(3):
            said = model.generate(ids, max_new_tokens=37, do_sample=True, modality=modality, seed=seed)[0]
            said = said[said != v.pad].numpy()
            assert v.frame_fault(said) is None
