"""Megatron-core's TransformerConfig for the global transformer and for the local modules, from a run's Config."""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig

from megatron_lst.config.schema import Config
from megatron_lst.parallel import accelerators, cpu
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import PipelineSplit
from megatron_lst.parallel.weight_gradients import add_in_place


def parameter_dtype(config: Config) -> torch.dtype:
    """Data type of the model's weights and activations."""
    return torch.bfloat16 if config.training.precision == "bf16" else torch.float32


def keep_uninitialised(weight: torch.Tensor) -> torch.Tensor:
    """Megatron-core's init hook. The weights are set by name afterwards, the same on every layout."""
    return weight


def _common(config: Config, layout: ParallelLayout) -> dict[str, Any]:
    dtype = parameter_dtype(config)
    return {
        "tensor_model_parallel_size": layout.tensor,
        "sequence_parallel": layout.sequence,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.model.norm_eps,
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method": keep_uninitialised,
        "output_layer_init_method": keep_uninitialised,
        "calculate_per_token_loss": True,
        "gradient_accumulation_fusion": config.engine.name == "megatron" and add_in_place(cpu.device(), dtype),
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }


def global_settings(
    config: Config,
    layout: ParallelLayout,
    split: PipelineSplit,
    sequence: bool | None = None,
    fp8_manager: Any = None,
) -> TransformerConfig:
    """Settings of the global transformer, the pipeline's layout and recomputation among them (SPEC 3).

    Args:
        sequence: sequence parallelism, where it is not the layout's.
        fp8_manager: see `accelerators.fp8_recipe`.
    """
    model, engine, recompute = config.model, config.engine, config.training.recompute
    settings = _common(config, layout)
    recipe = accelerators.fp8_recipe(engine.fp8, engine.fp8_recipe, fp8_manager)
    if recipe is not None:
        # Transformer Engine's own way into main_grad has not run here yet.
        settings |= {"fp8": engine.fp8, "fp8_recipe": recipe, "gradient_accumulation_fusion": False}
    if sequence is not None:
        settings["sequence_parallel"] = sequence
    if layout.pipeline > 1:
        stages = [["decoder"] * layers for layers in split.layers]
        stages[0].insert(0, "embedding")
        stages[-1].append("loss")
        on_gpu = not cpu.on_cpu()
        settings |= {
            "pipeline_model_parallel_size": layout.pipeline,
            "pipeline_model_parallel_layout": stages,
            "pipeline_dtype": parameter_dtype(config),
            "deallocate_pipeline_outputs": True,
            "overlap_p2p_comm": on_gpu and layout.virtual > 1,
            "batch_p2p_comm": on_gpu and layout.virtual == 1,
            "batch_p2p_sync": False,
        }
    if recompute == "full":
        settings |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif recompute == "selective":
        settings |= {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]}
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.global_ffn,
        num_attention_heads=model.heads,
        num_query_groups=model.global_kv_heads,
        kv_channels=model.global_head_size,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
        no_rope_freq=[int(not model.has_rope(i)) for i in range(model.layers)] if model.no_rope_every else None,
        **settings,
    )


def local_settings(
    config: Config, layout: ParallelLayout, layers: int, sequence: bool | None = None
) -> TransformerConfig:
    """Settings of the patch encoder or decoder (SPEC 2, 5). They live on one stage: no pipeline here.

    Args:
        sequence: sequence parallelism, where it is not the layout's (keys and values of the cross-attentions are
            the same on every tensor-parallel rank).
    """
    model = config.model
    settings = _common(config, layout)
    if sequence is not None:
        settings["sequence_parallel"] = sequence
    return TransformerConfig(
        num_layers=layers,
        hidden_size=model.local_hidden,
        ffn_hidden_size=model.local_ffn_size,
        num_attention_heads=model.local_heads,
        num_query_groups=model.local_heads,
        kv_channels=model.local_hidden // model.local_heads,
        **settings,
    )
