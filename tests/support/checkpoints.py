"""Tiny checkpoints of language models, made by the real classes of transformers, and warm starts from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from megatron_lst.config.schema import ModelConfig
from megatron_lst.inference import LatentSpeechTextModel
from megatron_lst.inference.cache import Cache
from megatron_lst.inference.families import described
from megatron_lst.inference.warm_start import WarmStart, warm_start
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=2, heads=4, kv_heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1,
    init_std=0.3, rope_theta=10000.0, norm_eps=1e-6, text_path="direct",
)  # fmt: skip
THEIRS = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "initializer_range": 0.3, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TOKENS = [1, 5, 9, 3, 20, 11, 5, 8, 21, 4]
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
"""Of heads of 8: turns of 10, 1, 0.1 and 0.01, so that frequencies are kept, changed on the line, and divided."""


def saved(folder: Path, kind: str = "llama", *, shard: str = "1GB", dtype: Any = None, **changes: Any) -> Any:
    """A tiny checkpoint of the real class, and the class. Norms and biases are not what they are at the start."""
    torch.manual_seed(0)
    extras = {"sliding_window": None} if kind == "mistral" else {}
    settings = transformers.AutoConfig.for_model(kind, **{**THEIRS, **extras, **changes})
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype or torch.float32).save_pretrained(folder, max_shard_size=shard)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@torch.no_grad()
def expected_of(model: Any) -> torch.Tensor:
    """Their logits of TOKENS, float32 [tokens, 24]."""
    return model(torch.tensor([TOKENS])).logits[0].float()


def fitted(folder: Path, base: ModelConfig = TINY) -> ModelConfig:
    """The model section that fits a checkpoint."""
    return replace(base, **described(json.loads((folder / "config.json").read_text())).model)


def started(
    folder: Path, config: ModelConfig = TINY, context: int | None = 64, vocabulary: Vocabulary = V
) -> tuple[WarmStart, dict[str, torch.Tensor]]:
    weights = dict(ReferenceModel(config, vocabulary).state_dict())
    return warm_start(folder, weights, config, vocabulary, context), weights


def logits(config: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Text logits of TOKENS by the inference model, float32 [tokens, 24]."""
    size = 1 if config.kind == "baseline" else 3
    model = LatentSpeechTextModel.from_weights(config, V, weights, size)
    outputs = model.advance([model.counters(1)[0].add(TOKENS)], Cache(config, 1, one_call=True))
    return outputs.logits(np.arange(len(TOKENS)))[:, :24]
