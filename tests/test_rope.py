"""RoPE's frequencies against those of transformers."""

import pytest
import torch

pytest.importorskip("transformers")
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_lst.config.schema import RopeScalingConfig
from megatron_lst.rope import scaled


@pytest.mark.parametrize(
    ("theta", "factor", "low", "high", "context"),
    [(500_000.0, 8.0, 1.0, 4.0, 8192), (500_000.0, 32.0, 1.0, 4.0, 8192), (10_000.0, 3.0, 0.5, 30.0, 600)],
)
def test_llama3_frequencies(theta: float, factor: float, low: float, high: float, context: int) -> None:
    theirs = LlamaConfig(
        hidden_size=128, num_attention_heads=1, rope_theta=theta, max_position_embeddings=131072,
        rope_scaling={
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": context,
        },
    )  # fmt: skip
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = theta ** -(torch.arange(0, 128, 2) / 128)
    found = scaled(plain, RopeScalingConfig("llama3", factor, low, high, context))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    # All three kinds of frequencies are there: kept, divided, and between the two.
    share = found / plain
    assert (share == 1).any()
    assert torch.isclose(share, torch.tensor(1 / factor)).any()
    assert ((share < 0.99) & (share > 1.01 / factor)).any()
    assert not torch.allclose(scaled(plain, RopeScalingConfig("llama3", factor + 1, low, high, context)), expected)


def test_without_scaling_they_stay() -> None:
    plain = torch.tensor([1.0, 0.1])
    assert scaled(plain, None) is plain
    assert scaled(plain, RopeScalingConfig()) is plain
