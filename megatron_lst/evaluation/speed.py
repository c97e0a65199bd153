"""Generation against the unpatched baseline of the same trunk: tokens a second, global steps, cache memory."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.inference import GenerationSettings, LatentSpeechTextModel, generate
from megatron_lst.patching.chunks import prompt_tokens, speech_span
from megatron_lst.patching.strategies import generation_patch_size


@dataclass(frozen=True)
class Speed:
    """One model's generation.

    Attributes:
        tokens_per_second: of the decoding loop; prefill and the capture of CUDA graphs left out.
        tokens_per_cpu_second: the same over this process's time on the CPU, which waits for nobody else on a shared
            machine. Says nothing where the model is on a GPU.
        first_token: seconds until the first token, prefill included.
        operators: calls that compute something, a step of all sequences: about the kernels that the host launches.
            Where a GPU replays captured graphs they are few, whatever the graphs hold.
        global_steps: units through the global transformer for the response, of one sequence.
        global_passes: steps in which it ran, for any of the sequences.
        cache: bytes allocated at the end, all caches; global_cache: those of the global transformer.
    """

    tokens_per_second: float
    tokens_per_cpu_second: float
    first_token: float
    tokens: int
    operators: float
    global_steps: int
    global_passes: int
    cache: int
    global_cache: int


def random_model(config: Config, device: str, dtype: torch.dtype, seed: int = 0) -> LatentSpeechTextModel:
    """A model with random weights: speed does not depend on them."""
    with torch.device("meta"):
        shapes = LatentSpeechTextModel(
            config.model, config.vocabulary, generation_patch_size(config.model, config.patching)
        ).state_dict()
    generator = torch.Generator(device).manual_seed(seed)
    weights = {
        name: torch.ones(t.shape, dtype=dtype, device=device)
        if t.dim() == 1
        else (torch.randn(t.shape, generator=generator, device=device) * config.model.init_std).to(dtype)
        for name, t in shapes.items()
    }
    size = generation_patch_size(config.model, config.patching)
    return LatentSpeechTextModel.from_weights(config.model, config.vocabulary, weights, size)


class _Operators(TorchDispatchMode):
    """Counts operators that make or change a tensor; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = (
            {t.untyped_storage().data_ptr() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        self.count += func._schema.is_mutable or bool(outputs - inputs)
        return result


def _operators(model: LatentSpeechTextModel, prompts: list[list[int]], settings: GenerationSettings) -> float:
    """A step, over two whole patches of every usual size: the difference of a long and a short response."""
    counts, depth = [], model.vocabulary.depth
    for tokens in (9 * depth, 25 * depth):
        with _Operators() as mode:
            generate(model, prompts, replace(settings, max_tokens=tokens, min_tokens=tokens))
        counts.append(mode.count)
    return (counts[1] - counts[0]) / (16 * depth)


def measure(
    model: LatentSpeechTextModel,
    prompt: int,
    tokens: int,
    batch: int,
    repeats: int = 3,
    fixed_shapes: bool | None = None,
) -> Speed:
    """Speech to speech, `tokens` each after `batch` prompts. The fastest of `repeats`, after a warm-up.

    The first prompt has `prompt` speech tokens and each of the others a frame more: patches are as far apart as in
    real batches. Both counts are rounded up to whole frames.

    Raises:
        UserError: nothing to measure: no prompt, or less than two tokens.
    """
    if batch < 1 or prompt < 0 or tokens < 2:
        raise UserError(
            f"speed of {batch} prompts of {prompt} speech tokens, {tokens} tokens each: at least one prompt and two "
            f"tokens"
        )
    v = model.vocabulary
    frames = [-(-prompt // v.depth) + b for b in range(batch)]
    tokens = -(-tokens // v.depth) * v.depth
    codes = [(7 * np.arange(n)[:, None] + b) % v.codebook_sizes for b, n in enumerate(frames)]  # [n, Q]
    spoken = [speech_span(frame + v.offsets) for frame in codes]
    ids = [prompt_tokens([span], v) for span in spoken]
    settings = GenerationSettings(
        max_tokens=tokens, min_tokens=tokens, modality="speech", fixed_shapes=fixed_shapes
    )  # fmt: skip
    operators = _operators(model, ids, settings)  # a warm-up too
    best: Speed | None = None
    for _ in range(repeats):
        began = time.perf_counter()
        cpu: list[float] = []

        def note(_: int, at: list[float] = cpu) -> None:
            at.append(time.process_time())

        results, timing = generate(model, ids, settings, note)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began - timing.first_token - timing.prepared
        found = Speed(
            tokens_per_second=(timing.tokens - batch) / seconds,
            tokens_per_cpu_second=(timing.tokens - batch) / (cpu[-1] - cpu[0]),
            first_token=timing.first_token,
            tokens=timing.tokens,
            operators=operators,
            global_steps=results[0].units,
            global_passes=timing.global_passes,
            cache=sum(timing.cache_bytes.values()),
            global_cache=timing.cache_bytes["global"],
        )
        best = found if best is None or found.tokens_per_second > best.tokens_per_second else best
    assert best is not None
    return best


def table(lst: Speed, baseline: Speed) -> str:
    """Markdown, ratios beside."""
    rows = [
        ("tokens per second", f"{lst.tokens_per_second:.1f}", f"{baseline.tokens_per_second:.1f}",
         lst.tokens_per_second / baseline.tokens_per_second),
        ("tokens per CPU second", f"{lst.tokens_per_cpu_second:.1f}", f"{baseline.tokens_per_cpu_second:.1f}",
         lst.tokens_per_cpu_second / baseline.tokens_per_cpu_second),
        ("first token, ms", f"{1000 * lst.first_token:.0f}", f"{1000 * baseline.first_token:.0f}",
         lst.first_token / baseline.first_token),
        ("operators a step", f"{lst.operators:.0f}", f"{baseline.operators:.0f}", lst.operators / baseline.operators),
        ("global steps a response", str(lst.global_steps), str(baseline.global_steps),
         lst.global_steps / baseline.global_steps),
        ("global passes, all responses", str(lst.global_passes), str(baseline.global_passes),
         lst.global_passes / baseline.global_passes),
        ("global cache, MB", f"{lst.global_cache / 1e6:.1f}", f"{baseline.global_cache / 1e6:.1f}",
         lst.global_cache / baseline.global_cache),
        ("all caches, MB", f"{lst.cache / 1e6:.1f}", f"{baseline.cache / 1e6:.1f}", lst.cache / baseline.cache),
    ]  # fmt: skip
    lines = ["| | LST | baseline | ratio |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {name} | {a} | {b} | {ratio:.2f} |" for name, a, b, ratio in rows)])
