"""The global transformer's matrix products in fp8 (`engine.fp8`), by Transformer Engine's linear layers.

Their parameters are bf16, with the names, shapes and shards of Megatron-core's own layers, so that optimizer,
checkpoints and exports do not know of fp8.  For the same reason no recipe here remembers earlier steps: delayed scaling
would, and a run that is resumed, or loaded on another layout, would not go on as it was.

`TransformerConfig.fp8` does the rest: Megatron-core runs every layer under Transformer Engine's autocast, recomputes
activations under it too, and has weights quantised anew at the first micro-batch of each step.
"""

from torch import nn

from megatron_lst.errors import UserError


def linear_layers() -> tuple[type, type]:
    """Column- and row-parallel linear layers that compute in fp8 under the autocast.

    Raises:
        UserError: Megatron-core could not import this Transformer Engine; it would train in bf16 and say nothing.
    """
    from megatron.core.extensions import transformer_engine as core

    if not core.HAVE_TE:
        raise UserError(
            "engine.fp8: the Megatron-core here does not take the Transformer Engine here; Megatron-core 0.16 is made "
            "for 2.9 to 2.11. Install versions that belong together, or use engine.fp8=none"
        )
    return core.TEColumnParallelLinear, core.TERowParallelLinear


def score_in_bf16(module: nn.Module) -> None:
    """Keep fp8 to training: what is scored are the weights that an export holds, in rows of any length."""
    from megatron.core.extensions.transformer_engine import TELinear, TEQuantizationParams, TEQuantizationRecipe

    as_configured = TEQuantizationRecipe(override_quantized_autocast=False)
    bf16 = TEQuantizationRecipe()
    for layer in module.modules():
        if isinstance(layer, TELinear):
            layer.te_quant_params = TEQuantizationParams(training_recipe=as_configured, evaluation_recipe=bf16)
