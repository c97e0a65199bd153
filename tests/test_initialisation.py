"""Initial weights: any part equals that part of the whole, the values are normal, and they stay what they are."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_lst.config.schema import ModelConfig
from megatron_lst.draws import words
from megatron_lst.initialisation import Initialiser, standard_normal

NAME = "global_transformer.layers.3.mlp.up_proj.weight"
MODEL = ModelConfig()


def drawn(name: str = NAME, shape: tuple[int, int] = (300, 200), seed: int = 0) -> torch.Tensor:
    return Initialiser(MODEL, seed).whole(name, shape)


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, int], range, range]:
    shape = draw(st.integers(1, 40)), draw(st.sampled_from([1, 7, 64, 300, 1 << 14, (1 << 14) + 5]))
    rows, columns = (sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape)
    return shape, *(range(a, b if b > a else a + 1) for a, b in (rows, columns))


@given(parts())
def test_a_part_is_that_part_of_the_whole(part: tuple[tuple[int, int], range, range]) -> None:
    shape, rows, columns = part
    initialiser = Initialiser(MODEL, 0)
    found = initialiser.part(NAME, shape, rows, columns)
    assert torch.equal(found, drawn(shape=shape)[rows.start : rows.stop, columns.start : columns.stop])
    assert initialiser.drawn == len(rows) * len(columns)


def test_parts_that_should_differ_do() -> None:
    """Control of the test above; no value comes twice by its place, name or seed."""
    whole = drawn()
    assert not torch.equal(Initialiser(MODEL, 0).part(NAME, (300, 200), range(1, 11), range(200)), whole[:10])
    others = [drawn(seed=1), drawn(NAME.replace("3", "4"))]
    assert all((other != whole).float().mean() > 0.99 for other in others)


def test_norms_are_one_and_not_drawn() -> None:
    initialiser = Initialiser(MODEL, 0)
    assert torch.equal(initialiser.whole("norm.weight", (7,)), torch.ones(7))
    assert initialiser.drawn == 0


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("embedding.weight", None),
        ("decoder.layers.0.mlp.gate_proj.weight", None),
        ("encoder.layers.0.attention.o_proj.weight", MODEL.encoder_layers),
        ("encoder.cross_attention.o_proj.weight", MODEL.encoder_layers),
        ("global_transformer.layers.9.mlp.down_proj.weight", MODEL.layers),
        ("decoder.layers.2.cross_attention.o_proj.weight", MODEL.decoder_layers),
    ],
)
def test_output_projections_are_scaled_by_the_depth_of_their_module(name: str, layers: int | None) -> None:
    expected = MODEL.init_std / (math.sqrt(2 * layers) if layers else 1)
    assert float(drawn(name, (500, 1000)).std()) == pytest.approx(expected, rel=5e-3)


def test_values_are_normal_and_independent() -> None:
    z = drawn(shape=(2000, 1000)).double() / MODEL.init_std
    n = z.numel()
    moments = [float((z**k).mean()) for k in (1, 2, 3, 4)]
    for found, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(found - expected) < 5 * math.sqrt(variance / n)
    ordered = np.sort(z.flatten().numpy())
    distance = np.abs(0.5 * (1 + torch.erf(torch.from_numpy(ordered) / math.sqrt(2)).numpy()) - np.arange(n) / n).max()
    assert distance < 1.95 / math.sqrt(n), "Kolmogorov-Smirnov, one in a thousand"
    beyond = float((z.abs() > 4).double().mean())
    assert beyond == pytest.approx(2 * NormalDist().cdf(-4), rel=0.4)
    neighbours = [
        (z[:, 1:] * z[:, :-1]), (z[1:] * z[:-1]), z * (drawn(shape=(2000, 1000), seed=1) / MODEL.init_std),
        z[:, 8:] * z[:, :-8], z * (drawn(NAME.replace("3", "4"), (2000, 1000)) / MODEL.init_std),
    ]  # fmt: skip
    assert all(abs(float(products.mean())) < 5 / math.sqrt(n) for products in neighbours)
    assert abs(float((z[:, 1:] * z[:, 1:]).mean())) > 5 / math.sqrt(n), "control: a value is not independent of itself"


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    random = np.concatenate(
        [
            np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32),
            np.array([0, 1, 2, 3, 2**32 - 1, 2**32 - 2], np.uint32),
        ]
    )
    expected = [
        NormalDist().inv_cdf(min(((int(b) >> 1) + 0.5) * 2.0**-32, 0.5)) * (1 - 2 * (int(b) & 1)) for b in random
    ]
    np.testing.assert_allclose(standard_normal(random), expected, atol=1e-6, rtol=1e-6)
    flipped = standard_normal(random ^ np.uint32(1))
    np.testing.assert_array_equal(flipped, -standard_normal(random))


def test_words_are_slices_of_one_sequence() -> None:
    whole = words([0], 100, 5, "x")[0]
    found = words([3, 0, 17, 18, 60], 40, 5, "x")
    for start, row in zip([3, 0, 17, 18, 60], found, strict=True):
        np.testing.assert_array_equal(row, whole[start : start + 40])
    assert not np.array_equal(words([0], 100, 6, "x")[0], whole)
    far = words([2**40 + 3], 4, 5, "x")[0]
    np.testing.assert_array_equal(far, words([2**40], 8, 5, "x")[0, 3:7])


def test_values_are_pinned() -> None:
    """Bit for bit, on any machine. A change here makes every fresh run another one."""
    assert drawn(shape=(2, 4)).flatten().tolist() == [
        0.03595948964357376, -0.003541304962709546, -0.02517261914908886, -0.019600355997681618,
        -0.008628685027360916, -0.03632329776883125, 0.04356876388192177, -0.014385012909770012,
    ]  # fmt: skip
