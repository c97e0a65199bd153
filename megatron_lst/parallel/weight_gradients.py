"""Weight gradients of linear maps and norms go straight into the float32 `main_grad`, without NVIDIA's apex.

Megatron-core can add them there by an extension of apex. Its place is taken by `lst_kernels.add_product`, where a small
product on the device shows that it works: no rounded gradient is written, read and added in another pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lst_kernels import add_product
from lst_kernels.add_product.library import works_on
from megatron_lst.parallel import cpu


def expect_first(main_grad: Any) -> None:
    """What `main_grad` holds is of an earlier step: what comes next is written, not added."""
    main_grad.is_stale = True


def take_first(main_grad: Any) -> bool:
    """Whether what is about to be written is the first of this step; asked once for each."""
    stale: bool = getattr(main_grad, "is_stale", False)
    main_grad.is_stale = False
    return stale


def into_main_grad(weight: Any) -> Callable[[], tuple[Tensor, bool]]:
    """For a kernel that adds this weight's gradient itself: called in the backward pass, where it adds, and whether it
    writes instead. Megatron-core's hook then leaves the weight's `grad` alone."""

    def asked() -> tuple[Tensor, bool]:
        weight.grad_added_to_main_grad = True
        return weight.main_grad, take_first(weight.main_grad)

    return asked


class _Products:
    """What Megatron-core calls of apex's `fused_weight_gradient_mlp_cuda`."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: Tensor, grad: Tensor, main_grad: Tensor) -> None:
        """main_grad [o, i] float32 += grad [n, o] transposed @ inputs [n, i]; the first of a step is written."""
        add_product(main_grad, grad.t(), inputs, first=take_first(main_grad))


def add_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Install it where it works, for models that are built from now on; False on a CPU, where autograd adds.

    Asks the device, so it comes before the first step. For weights that have a `main_grad` alone: not under DeepSpeed.
    """
    if cpu.on_cpu() or (device.type == "cuda" and not works_on(device, dtype)):
        return False
    from megatron.core.tensor_parallel import layers

    module: Any = layers
    module.fused_weight_gradient_mlp_cuda, module._grad_accum_fusion_available = _Products, True
    return True
