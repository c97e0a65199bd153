"""AdamW on Megatron-core's optimizers: fused where an accelerator imports, torch's elsewhere, with its traps closed."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import optimizer as core_optimizer
from megatron.core import utils as core_utils
from megatron.core.optimizer import (
    OptimizerConfig,
    ParamKey,
    ParamPredicate,
    clip_grads,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from torch import Tensor, nn

from megatron_lst.config.schema import Config
from megatron_lst.engines.losses import KINDS
from megatron_lst.engines.megatron.adamw import FusedAdamW, write_weights
from megatron_lst.model.settings import parameter_dtype
from megatron_lst.parallel import accelerators, cpu


class Optimizer:
    """Clipping, a learning rate a step, weight decay on matrices, and no update where anything is not finite.

    Args:
        chunks: this rank's model chunks in their data-parallel wrappers.
        overlap: parameters are gathered while the next forward pass runs.
        freezable: parameters that do not decay in a frozen step.
        trunk: parameters that learn at `training.trunk_lr_ratio` of the rate.
        divides: gradients are sums over targets, and the fused update divides them, clipping by the same factor: a pass
            over all gradients less, two where they are clipped. None: always by `lst_kernels`, by PyTorch's on a GPU.
    """

    def __init__(
        self,
        config: Config,
        chunks: list[Any],
        overlap: bool,
        freezable: Collection[nn.Parameter] = (),
        trunk: Collection[nn.Parameter] = (),
        divides: bool | None = None,
    ) -> None:
        training = config.training
        self.name = accelerators.choose("optimizer", config.engine.optimizer)
        by_torch = (not cpu.on_cpu() if divides is None else divides) and self.name == "torch"
        self.divides = by_torch or self.name == "lst_kernels"
        self._clip, self._weight_decay = training.clip, training.weight_decay
        if self.name == "torch":
            core_optimizer.Adam, core_optimizer.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, True
        else:
            ours = self.name == "lst_kernels"
            core_optimizer.Adam = FusedAdamW if ours else accelerators.probe("optimizer", self.name)
            core_optimizer.USING_PYTORCH_OPTIMIZER = False
        _clip_together()
        settings = OptimizerConfig(
            optimizer="adam",
            lr=training.lr,
            min_lr=0.0,
            weight_decay=training.weight_decay,
            adam_beta1=training.beta1,
            adam_beta2=training.beta2,
            adam_eps=training.eps,
            clip_grad=training.clip,
            bf16=training.precision == "bf16",
            params_dtype=parameter_dtype(config),
            use_distributed_optimizer=config.engine.distributed_optimizer,
            overlap_param_gather=overlap and config.engine.distributed_optimizer,
        )
        apart = ParamKey(predicate=ParamPredicate("freezable", lambda parameter: parameter in freezable))
        slow = ParamKey(predicate=ParamPredicate("trunk", lambda parameter: parameter in trunk))
        groups = {
            **get_standard_config_overrides(settings),
            apart: {"freezable": True},
            slow: {"lr_share": training.trunk_lr_ratio},
        }
        with cpu.optimizer_types():
            self.core = get_megatron_optimizer(settings, chunks, groups, use_gloo_process_groups=False)
        if self.name == "torch":
            for group in self.core.param_groups:
                group["fused"] = True  # one pass over each parameter; torch has it for CPU and CUDA
        write_weights(self.core)

    def zero_grad(self) -> None:
        self.core.zero_grad()

    @torch.no_grad()
    def step(self, lr: float, sums: Tensor, frozen: bool) -> tuple[list[float], float, bool]:
        """Clip and update.

        Args:
            sums: float64 [8 + n] of the global batch, as `losses.step_result` wants them.

        Returns:
            The sums' values, the norm of the global gradient before clipping, and whether the update took place.
        """
        with cpu.optimizer_types():
            self.core.prepare_grads()
            for group in self.core.param_groups:
                group["lr"] = lr * group.get("lr_mult", 1.0) * group.get("lr_share", 1.0)
                stands_still = frozen and group.get("freezable", False)
                group["weight_decay"] = 0.0 if stands_still else self._weight_decay * group.get("wd_mult", 1.0)
            return self._step_ahead(sums) if self.name == "lst_kernels" else self._step_after_reading(sums)

    def _step_ahead(self, sums: Tensor) -> tuple[list[float], float, bool]:
        """The host waits for nothing that the device has still to do: it launches the update behind the backward pass,
        with a divisor that the device computes, NaN where nothing may change, and prepares the next step meanwhile."""
        targets = sums[KINDS].clamp(min=1.0)
        norm = self._norm_on_device(sums.device) / targets
        divisor = targets * ((norm + 1e-6) / self._clip).clamp(min=1.0) if self._clip else targets
        finite = sums[: 2 * KINDS].isfinite().all() & norm.isfinite()
        divisor = divisor.where(finite, math.nan).float().reshape(1)
        read = _read_later(torch.cat((sums, norm.reshape(1), divisor.double())))
        for part in self.core.chained_optimizers:
            if part.optimizer is not None:
                part.optimizer.divisor = divisor
        self.core.step_with_ready_grads()
        *values, found, by = read()
        updated = math.isfinite(by)
        if not updated:
            for part in self.core.chained_optimizers:
                if part.optimizer is not None:
                    part.optimizer.forget_step()
        return values, found, updated

    def _norm_on_device(self, device: torch.device) -> Tensor:
        """Norm of the global gradient, not divided: float64, no axes. As Megatron-core's, which the host reads."""
        total = torch.zeros((), dtype=torch.float64, device=device)
        for part in self.core.chained_optimizers:
            squares = torch.zeros(1, device=device)
            if grads := part.get_main_grads_for_grad_norm():
                overflow = torch.zeros(1, dtype=torch.int, device=device)
                norm, _ = clip_grads.multi_tensor_applier(clip_grads.l2_norm_impl, overflow, [grads], False)
                squares = norm.reshape(1) ** 2
            dist.all_reduce(squares, group=part.get_grad_stats_parallel_group())
            total += squares[0]
        return total.sqrt()

    def _step_after_reading(self, sums: Tensor) -> tuple[list[float], float, bool]:
        values = sums.tolist()  # before the update: the host prepares the next step while the device updates
        divisor = max(values[KINDS], 1.0) if self.divides else 1.0
        norm = float(self.core.get_grad_norm()) / divisor
        if not all(map(math.isfinite, (*values[: 2 * KINDS], norm))):
            return values, norm, False
        if self.divides:
            self._divide_in_update(divisor * max((norm + 1e-6) / self._clip, 1.0) if self._clip else divisor)
        for part in [] if self.divides else self.core.chained_optimizers:
            parameters = part.get_parameters()
            if self._clip and parameters and not getattr(part, "is_stub_optimizer", False):
                core_optimizer.optimizer.clip_grad_by_total_norm_fp32(parameters, max_norm=self._clip, total_norm=norm)
        self.core.step_with_ready_grads()
        return values, norm, True

    def _divide_in_update(self, divisor: float) -> None:
        """PyTorch's fused AdamW finds what it divides gradients by where a gradient scaler would leave it."""
        for part in self.core.chained_optimizers:
            inner = part.optimizer
            if inner is not None and inner.param_groups:
                device = inner.param_groups[0]["params"][0].device
                inner.grad_scale = torch.full((), divisor, dtype=torch.float32, device=device)


def _read_later(values: Tensor) -> Callable[[], list[float]]:
    """Copied once the device has come to them; what is returned waits for that, not for what is launched after."""
    if values.device.type != "cuda":
        return values.tolist
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return there.tolist()

    return read


def _clip_together() -> None:
    """All gradients at once, where neither Transformer Engine nor apex brings kernels for it.

    Megatron-core then takes one gradient after the other: the host waits for the norm of each, several hundred times a
    step, and scaling writes each twice.
    """
    if clip_grads.l2_norm_impl is core_utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = _norm_together
    if clip_grads.multi_tensor_scale_impl is core_utils.local_multi_tensor_scale:
        clip_grads.multi_tensor_scale_impl = _scale_together


def _norm_together(chunk_size: int, overflow: Any, tensors: list[list[Tensor]], *_: Any) -> tuple[Tensor, None]:
    """float32 [1]: norm of all of them."""
    return nn.utils.get_total_norm(tensors[0]).reshape(1), None


def _scale_together(chunk_size: int, overflow: Any, tensors: list[list[Tensor]], scale: float) -> None:
    """In place: Megatron-core names the same gradients as source and target."""
    torch._foreach_mul_(tensors[1], scale)
