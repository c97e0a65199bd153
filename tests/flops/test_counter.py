"""The counter against PyTorch's own FLOP counter on the oracle, and against the published model sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_lst.config.schema import Config, DataConfig, ModelConfig, PatchingConfig, SourceConfig
from megatron_lst.flops import (
    MixtureStatistics,
    expected_work,
    module_flops,
    module_parameters,
    parameters,
    row_flops,
    row_work,
)
from megatron_lst.flops.work import Work, mixture_of
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.reference.model import Maps, ReferenceModel
from megatron_lst.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=50, speech_size=20, multiple=16)
SMALL = ModelConfig(
    hidden=32,
    layers=2,
    heads=4,
    local_hidden=16,
    local_heads=2,
    encoder_layers=2,
    decoder_layers=3,
    queries=2,
    window=6,
)
VARIANTS = {
    "lst": SMALL,
    "output_proj": replace(SMALL, queries=3),
    "grouped_qk_norm": replace(SMALL, kv_heads=2, qk_norm=True, ffn=48, local_ffn=24),
    "bias_head_size": replace(SMALL, kv_heads=2, head_size=12, qkv_bias=True),
    "window_units": replace(SMALL, decoder_window_units=5, cross_rope=True),
    "own_embedding": replace(SMALL, decoder_input="embedding"),
    "direct": replace(SMALL, text_path="direct"),
    "direct_window": replace(SMALL, text_path="direct", decoder_window_units=4),
    "baseline": replace(SMALL, kind="baseline"),
}


def config_of(model: ModelConfig) -> Config:
    strategy = "none" if model.kind == "baseline" else "static"
    return Config(
        vocabulary=VOCABULARY, model=model, patching=PatchingConfig(strategy=strategy), data=DataConfig(units=24)
    )


def chunk(spans: list[int], size: int) -> Chunk:
    """BOS, then text and speech spans by turns, each after its marker; speech in patches of `size`."""
    tokens, lengths = [VOCABULARY.bos], [1]
    for i, n in enumerate(spans):
        tokens += [VOCABULARY.speech_marker if i % 2 else VOCABULARY.text_marker]
        lengths += [1]
        tokens += [VOCABULARY.text_size + j % 20 if i % 2 else 3 + j % 40 for j in range(n)]
        lengths += [min(size, n - j) for j in range(0, n, size)] if i % 2 else [1] * n
    late = np.array([length < size for length in lengths]) & (np.array(lengths) > 1)
    return Chunk(np.array(tokens, np.int32), np.array(lengths, np.int32), late)


def a_row(model: ModelConfig, units: int = 24) -> Row:
    size = 1 if model.kind == "baseline" else 4
    spans = [[2, 3], [1, 4]] if model.kind == "baseline" else [[3, 10, 2], [2, 7]]
    return assemble_row([chunk(s, size) for s in spans], units, VOCABULARY)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_the_models(name: str) -> None:
    model = ReferenceModel(VARIANTS[name], VOCABULARY)
    config = config_of(VARIANTS[name])
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    counted = module_parameters(config)
    assert counted["global"] == sum(p.numel() for p in model.global_transformer.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    """The oracle computes dense scores for every token: given that work, the counter says what PyTorch says."""
    config, row = config_of(VARIANTS[name]), a_row(VARIANTS[name])
    model = ReferenceModel(VARIANTS[name], VOCABULARY)
    n, u, baseline = len(row.tokens), row.units, VARIANTS[name].kind == "baseline"
    dense = Work(
        tokens=n,
        units=u,
        global_pairs=u * u,
        **{} if baseline else dict(encoder_tokens=n, encoder_pairs=n * n, patches=u, patch_pairs=n * u),
        **{} if baseline else dict(decoder_tokens=n, decoder_pairs=n * n, read_units=u, cross_pairs=n * u),
        text_positions=n if VARIANTS[name].text_path == "direct" else 0,
    )
    with FlopCounterMode(display=False) as forward:
        logits = model(row)
    assert forward.get_total_flops() == sum(module_flops(config, dense).values())
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


@pytest.mark.parametrize("name", VARIANTS)
def test_exact_work_is_what_the_masks_let_through(name: str) -> None:
    """Pairs counted from maps equal the true entries of the oracle's masks, real tokens alone."""
    model_config = VARIANTS[name]
    row = a_row(model_config, units=30)
    maps = Maps(row, model_config, VOCABULARY, torch.device("cpu"))
    work = row_work(config_of(model_config), row)
    real = torch.as_tensor(row.tokens != VOCABULARY.pad)
    assert not real.all(), "the row has padding, so that the test can fail"
    first = np.cumsum(row.patch_length) - row.patch_length
    real_unit = real[first]
    assert work.tokens == real.sum()
    assert work.units == real_unit.sum()
    assert work.global_pairs == maps.over_units[real_unit].sum()
    if model_config.kind == "baseline":
        return
    direct = model_config.text_path == "direct"
    encoded = maps.speech if direct else real
    decoded = maps.speech_mode if direct else real
    assert work.encoder_tokens == work.patch_pairs == encoded.sum()
    assert work.encoder_pairs == maps.local[encoded][:, encoded].sum()
    assert work.decoder_pairs == maps.local[decoded][:, decoded].sum()
    assert work.cross_pairs == maps.newest_closed[decoded].sum()
    assert work.read_units == maps.newest_closed[decoded].any(0).sum()
    assert work.patches == (maps.speech[first] if direct else real_unit).sum()
    assert work.text_positions == ((real & ~decoded).sum() if direct else 0)


def test_padding_is_not_useful_work() -> None:
    config = config_of(SMALL)
    assert row_flops(config, a_row(SMALL, 24)) == row_flops(config, a_row(SMALL, 48))


@pytest.mark.parametrize(("units", "size", "window"), [(300, 4, 64), (300, 1, 64), (40, 4, 512)])
def test_expected_work_is_exact_for_one_document(units: int, size: int, window: int) -> None:
    """A row of one text or one speech-heavy document: the formula is what counting gives."""
    model = replace(SMALL, window=window)
    config = replace(config_of(model), data=DataConfig(units=units), patching=PatchingConfig(size=size))
    text = assemble_row([chunk([units - 2], size)], units, VOCABULARY)
    formula = expected_work(config, MixtureStatistics(interleaved=0, text=1))
    assert row_work(config, text) == formula
    speech = assemble_row([chunk([0, (units - 3) * size], size)], units, VOCABULARY)
    exact = row_work(config, speech)
    share = (units - 3) * size / exact.tokens
    mixture = MixtureStatistics(share, (1 - share), 1.0, interleaved=1, text=0, patch_length=size)
    expected = expected_work(config, mixture)
    assert expected.tokens == pytest.approx(exact.tokens)
    assert expected.encoder_pairs == pytest.approx(exact.encoder_pairs)
    assert expected.global_pairs == exact.global_pairs
    assert sum(module_flops(config, expected).values()) == pytest.approx(
        sum(module_flops(config, exact).values()), rel=0.002
    )


def test_a_mixture_is_near_what_rows_of_it_have() -> None:
    """Direct text path: the expectation (tokens of the other modality thin out the window) against counted rows."""
    model = replace(SMALL, text_path="direct", window=64)
    config = replace(config_of(model), data=DataConfig(units=800))
    body = chunk([16, 48] * 25, 4)
    row = assemble_row([body], len(body.patch_length), VOCABULARY)
    config = replace(config, data=DataConfig(units=row.units))
    exact = row_work(config, row)
    mixture = MixtureStatistics(
        speech_frames_per_word=48, pieces_per_word=18, text_ratio=1, text=0, speech_span_tokens=48, patch_length=4
    )
    expected = expected_work(config, mixture)
    for name in ("encoder_tokens", "decoder_tokens", "patches", "text_positions", "cross_pairs", "encoder_pairs"):
        assert getattr(expected, name) == pytest.approx(getattr(exact, name), rel=0.08), name


def test_every_kind_of_source_has_a_share() -> None:
    sources = tuple(SourceConfig(kind, kind, ("x",), 1.0) for kind in ("interleaved", "text", "asr", "tts"))  # type: ignore[arg-type]
    mixture = mixture_of(replace(config_of(SMALL), data=DataConfig(sources=sources)))
    assert (mixture.interleaved, mixture.text) == (3.0, 1.0)
    assert (mixture_of(Config()).interleaved, mixture_of(Config()).text) == (1.0, 2.0), "the paper's, without sources"
