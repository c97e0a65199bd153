"""Decoding in fixed shapes does the same at every token: what a CUDA graph asks for, shown without a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.fixed import FixedDecoder
from megatron_lst.inference.inputs import PatchCounter
from tests.inference.test_generation import VARIANTS, V, model_of

PROMPTS = [[V.bos, V.speech_marker, 25, 26, 27], [V.bos, 5, 6, V.speech_marker, 28]]


class _Calls(TorchDispatchMode):
    """Every operator with its tensors' shapes, and their devices; reading a value fails, as in a captured graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(reader in str(func) for reader in ("_local_scalar_dense", "item", "nonzero")):
            raise AssertionError(f"{func} reads a value")
        self.calls.append((str(func), *(tuple(t.shape) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t))))
        result = func(*args, **(kwargs or {}))
        self.devices |= {t.device.type for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)}
        return result


def calls_of(step: Callable[[], object]) -> list[tuple[object, ...]]:
    with torch.inference_mode(), _Calls() as mode:
        step()
    return mode.calls


def devices_of(step: Callable[[], object]) -> set[str]:
    with torch.inference_mode(), _Calls() as mode:
        step()
    return mode.devices


def started(model: LatentSpeechTextModel, prompts: list[list[int]] = PROMPTS) -> tuple[Cache, list[PatchCounter]]:
    cache, counters = Cache(model.config, len(prompts)), model.counters(len(prompts))
    model.advance([counter.add(prompt) for counter, prompt in zip(counters, prompts, strict=True)], cache)
    return cache, counters


def opened(model: LatentSpeechTextModel, room: int = 40) -> tuple[FixedDecoder, list[PatchCounter]]:
    cache, counters = started(model)
    return FixedDecoder(model, cache, counters, room), counters


def addresses(thing: object) -> dict[str, int]:
    """Where every tensor that the decoder keeps lies."""
    found = {}
    for name, value in vars(thing).items():
        if isinstance(value, torch.Tensor):
            found[name] = value.data_ptr()
        elif name in ("global_layers", "cross", "caches", "encoder", "decoder"):
            for i, part in enumerate(value if isinstance(value, list) else [value]):
                found |= {f"{name}.{i}.{inner}": at for inner, at in addresses(part).items()}
    return found


@pytest.mark.parametrize("options", VARIANTS)
def test_every_step_is_the_same_work_on_the_same_memory(options: dict[str, object]) -> None:
    _, model = model_of(**options)
    decoder, counters = opened(model)
    before = addresses(decoder)
    steps: dict[str, list[Any]] = {"encode": [], "close": [], "read": []}
    for name in steps:
        setattr(decoder, f"_{name}", lambda name=name: steps[name].append(calls_of(getattr(decoder, name))))
    for token in (26, 27, 28, 29, V.text_marker, 5, 6, V.speech_marker, 30, V.text_marker, 7):
        decoder.advance([counters[0].add([token]), counters[1].add([] if token == 6 else [token])])
    assert addresses(decoder) == before
    for name, calls in steps.items():
        assert all(call == calls[0] for call in calls), name
        assert len(calls) >= 3 or (name == "encode" and not decoder.lst)


@pytest.mark.parametrize("options", VARIANTS)
def test_nothing_of_the_host_enters_a_step(options: dict[str, object]) -> None:
    """A copy from the host cannot be captured. On the meta device its tensors stand out; values cannot be read."""
    _, model = model_of(**options)
    weights = {name: weight.to("meta", torch.bfloat16) for name, weight in model.state_dict().items()}
    decoder, _ = opened(LatentSpeechTextModel.from_weights(model.config, V, weights, model.patch_size))
    for step in (*([decoder.encode] if decoder.lst else []), decoder.close, decoder.read):
        assert devices_of(step) == {"meta"}


def test_a_tensor_of_the_host_is_found() -> None:
    assert devices_of(lambda: torch.ones(3, device="meta") + torch.tensor(1.0)) == {"meta", "cpu"}


def tokens_of(rng: np.random.Generator, count: int) -> list[int]:
    """Spans of speech and of text, short and long, with their markers."""
    tokens: list[int] = []
    while len(tokens) < count:
        length = int(rng.integers(1, 9))
        tokens += [V.text_marker, *rng.integers(3, V.text_size, length).tolist()]
        tokens += [V.speech_marker, *rng.integers(V.text_size, V.text_size + V.speech_size, 2 * length).tolist()]
    return tokens[:count]


@pytest.mark.parametrize("options", VARIANTS)
def test_any_tokens_give_the_logits_of_ragged_decoding(options: dict[str, object]) -> None:
    _, model = model_of(**options)
    decoder, counters = opened(model, room=90)
    cache, others = started(model)
    rng = np.random.default_rng(4)
    for first, second in zip(tokens_of(rng, 80), tokens_of(rng, 80), strict=True):
        found = decoder.advance([c.add([t]) for c, t in zip(counters, (first, second), strict=True)])
        inputs = [c.add([t]) for c, t in zip(others, (first, second), strict=True)]
        right = model.advance(inputs, cache).logits(np.arange(2))
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    assert decoder.allocated_bytes().keys() == cache.allocated_bytes().keys()


def test_nobody_ever_sees_nothing() -> None:
    """Under `direct` text skips the encoder: whoever has no entry for it sees a spare slot, were all others empty."""
    _, model = model_of(text_path="direct")
    cache, counters = started(model, [[V.bos, 5], [V.bos, V.speech_marker, 27]])
    encoder = FixedDecoder(model, cache, counters, 4).encoder
    with torch.inference_mode():
        for runs in ([False, False], [False, True], [True, False]):
            queries = encoder.add(torch.tensor([2, 3]), torch.tensor(runs))
            assert queries.mask.any(1).all()
            assert (queries.mask[:, -1] == ~torch.tensor(runs)).all()


def test_a_step_that_reads_a_value_is_found() -> None:
    with pytest.raises(AssertionError, match="reads a value"):
        calls_of(lambda: float(torch.ones(1).sum()))


def test_ragged_decoding_is_not() -> None:
    _, model = model_of()
    cache, counters = started(model)
    calls = [
        calls_of(lambda token=token: model.advance([c.add([token]) for c in counters], cache))  # type: ignore[misc]
        for token in (26, 27)
    ]
    assert calls[0] != calls[1]


def test_who_does_nothing_disturbs_nobody_and_remembers_everything() -> None:
    """The second sequence pauses for a while; its logits afterwards are those of one that never did."""
    _, model = model_of()
    paused, counters = opened(model)
    straight, others = opened(model)
    for token in (26, 27, 28, 29, V.text_marker, 5):
        paused.advance([counters[0].add([token]), counters[1].add([])])
    for token in (31, 30, V.text_marker, 8):
        late = paused.advance([counters[0].add([]), counters[1].add([token])])
        right = straight.advance([others[0].add([]), others[1].add([token])])
        torch.testing.assert_close(late[1], right[1], rtol=1e-12, atol=1e-12)
    assert torch.isfinite(late).all()


@pytest.mark.parametrize("room", [0, 40])
def test_there_must_be_room(room: int) -> None:
    _, model = model_of()
    decoder, counters = opened(model, room)

    def go() -> None:
        for _ in range(30):
            decoder.advance([counter.add([5]) for counter in counters])

    if room:
        go()
    else:
        with pytest.raises(AssertionError, match="room for"):
            go()


def on_the_gpu(options: dict[str, object], dtype: torch.dtype = torch.float64) -> LatentSpeechTextModel:
    _, model = model_of(**options)
    weights = {name: weight.to("cuda", dtype) for name, weight in model.state_dict().items()}
    return LatentSpeechTextModel.from_weights(model.config, V, weights, model.patch_size)


@pytest.mark.gpu
@pytest.mark.parametrize("read", [True, False], ids=["each step read", "the host far ahead"])
@pytest.mark.parametrize("options", VARIANTS)
def test_captured_graphs_give_the_logits_of_a_cpu(options: dict[str, object], read: bool) -> None:
    """Now and then one of the two has nothing to do. A host that never waits changes nothing that is yet to be read."""
    _, model = model_of(**options)
    captured, counters = opened(on_the_gpu(options), room=90)
    decoder, others = opened(model, room=90)
    if not read:
        torch.cuda._sleep(500_000_000)
    rng = np.random.default_rng(4)
    for step, (first, second) in enumerate(zip(tokens_of(rng, 80), tokens_of(rng, 80), strict=True)):
        given = [[first], [] if step % 5 == 3 else [second]]
        found = captured.advance([c.add(t) for c, t in zip(counters, given, strict=True)])
        right = decoder.advance([c.add(t) for c, t in zip(others, given, strict=True)])
        if read or step == 79:
            active = [i for i, tokens in enumerate(given) if tokens]
            torch.testing.assert_close(found.cpu()[active], right[active], rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", VARIANTS)
def test_captured_graphs_say_what_ragged_decoding_says(options: dict[str, object], dtype: torch.dtype) -> None:
    """In dtypes and widths that have kernels of their own for masked attention. Two decoders at once."""
    widths = {"hidden": 128, "ffn": 192, "local_hidden": 64, "local_ffn": 96, "init_std": 0.1}
    model = on_the_gpu({**options, **widths}, dtype)
    decoders = [opened(model, room) for room in (60, 90)]
    cache, others = started(model)
    rng = np.random.default_rng(4)
    for first, second in zip(tokens_of(rng, 60), tokens_of(rng, 60), strict=True):
        found = [d.advance([c.add([t]) for c, t in zip(cs, (first, second), strict=True)]) for d, cs in decoders]
        inputs = [c.add([t]) for c, t in zip(others, (first, second), strict=True)]
        right = model.advance(inputs, cache).logits(np.arange(2)).float()
        largest = right.abs().max().clamp(min=1)
        for logits in found:
            assert (logits.float() - right).abs().max() <= (5e-2 if dtype == torch.bfloat16 else 1e-4) * largest
