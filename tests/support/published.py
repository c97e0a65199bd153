"""What the published config.json of some language models says, and (pieces, BOS, EOS) of their tokenizers.

BOS and EOS are what data preparation takes from tokenizer.json and tokenizer_config.json: pretraining's.
"""

from typing import Any

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "initializer_range": 0.02, "mlp_bias": False, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": True,
}  # fmt: skip
_LLAMA_3 = {
    **_LLAMA, "bos_token_id": 128000, "eos_token_id": 128001, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "vocab_size": 128256,
}  # fmt: skip


def _scaled(factor: float) -> dict[str, Any]:
    return {
        "factor": factor, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip


_QWEN = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "initializer_range": 0.02, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False,
}  # fmt: skip
_QWEN_25 = {**_QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_mrope": False}
_QWEN_3 = {
    **_QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
    "max_position_embeddings": 32768, "num_key_value_heads": 8, "rope_scaling": None, "sliding_window": None,
    "vocab_size": 151936,
}  # fmt: skip

PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "SmolLM2-135M": (
        {
            **_LLAMA, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "intermediate_size": 1536,
            "is_llama_config": True, "max_position_embeddings": 8192, "num_attention_heads": 9,
            "num_hidden_layers": 30, "num_key_value_heads": 3, "rope_interleaved": False, "rope_scaling": None,
            "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
        },
        (49152, 0, 0),
    ),
    "Llama-3.2-1B": (
        {
            **_LLAMA_3, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_scaling": _scaled(32.0),
            "tie_word_embeddings": True,
        },
        (128256, 128000, 128001),
    ),
    "Llama-3.2-3B": (
        {
            **_LLAMA_3, "head_dim": 128, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
            "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_scaling": _scaled(32.0),
            "tie_word_embeddings": True,
        },
        (128256, 128000, 128001),
    ),
    "Llama-3.1-8B": (
        {
            **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "rope_scaling": _scaled(8.0),
            "tie_word_embeddings": False,
        },
        (128256, 128000, 128001),
    ),
    "Qwen2.5-0.5B": (
        {
            **_QWEN_25, "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
            "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 151936,
        },
        (151665, 151643, 151643),
    ),
    "Qwen2.5-7B": (
        {
            **_QWEN_25, "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
            "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
            "sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064,
        },
        (151665, 151643, 151643),
    ),
    "Qwen3-1.7B": (
        {
            **_QWEN_3, "hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 28,
            "num_attention_heads": 16, "num_hidden_layers": 28, "tie_word_embeddings": True,
        },
        (151669, 151643, 151643),
    ),
    "Qwen3-8B": (
        {
            **_QWEN_3, "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36,
            "num_attention_heads": 32, "num_hidden_layers": 36, "tie_word_embeddings": False,
        },
        (151669, 151643, 151643),
    ),
}  # fmt: skip
