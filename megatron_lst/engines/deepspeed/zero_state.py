"""AdamW's state under any ZeRO stage in the shape of the model's parameters, read and set through DeepSpeed's API."""

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lst.engines.sharded_checkpoint import MASTER, MODEL, STATES


class ZeroState:
    """What `engines.sharded_checkpoint` needs of an optimizer, for a DeepSpeed engine."""

    def __init__(self, engine: Any, group: dist.ProcessGroup) -> None:
        self._engine, self._group = engine, group

    @property
    def is_zero(self) -> bool:
        return hasattr(self._engine.optimizer, "optimizer")

    @property
    def _adam(self) -> Any:
        return self._engine.optimizer.optimizer if self.is_zero else self._engine.optimizer

    def _updated(self) -> list[Tensor]:
        """The tensors that AdamW itself updates: flat fp32 partitions, or the parameters."""
        if hasattr(self._engine.optimizer, "fp32_partitioned_groups_flat"):
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    def prime(self) -> None:
        """Give AdamW its zero state where it has not stepped yet, and let DeepSpeed find it."""
        for parameter in self._updated():
            state = self._adam.state[parameter]
            state.setdefault("step", torch.tensor(0.0))
            for name in STATES:
                state.setdefault(name, torch.zeros_like(parameter))
        # DeepSpeed links the moments with the parameters after the first group's first step, when the other groups have
        # none yet, and never again: link them anew.
        link = getattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            self._engine.optimizer._hp_optimizer_states_linked = False
            link()

    def get_step(self) -> int:
        return max((int(state["step"]) for state in self._adam.state.values()), default=0)

    def begin(self) -> None:
        """Before `fetch` and `put`."""
        self.prime()

    @torch.no_grad()
    def fetch(self, parameter: nn.Parameter, name: str, to: int) -> Tensor | None:
        """One of a parameter's tensors, in its shape, on data-parallel rank `to`; None elsewhere. Collective over the
        data-parallel ranks."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if name in STATES:
            value = (
                safe_get_full_optimizer_state(parameter, name) if self.is_zero else self._adam.state[parameter][name]
            )
        else:
            value = safe_get_full_fp32_param(parameter) if self.is_zero else parameter.detach()
        if dist.get_rank(self._group) != to:
            return None
        return value.to(parameter.dtype) if name == MODEL else value

    @torch.no_grad()
    def put(self, parameter: nn.Parameter, name: str, value: Tensor | None, source: int) -> None:
        """The inverse of `fetch`: what data-parallel rank `source` has becomes the state of all."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        dtype = parameter.dtype if name == MODEL else torch.float32
        if value is None:
            value = torch.empty(self.shape(parameter), dtype=dtype, device=parameter.device)
        value = value.to(device=parameter.device, dtype=dtype).contiguous()
        if dist.get_world_size(self._group) > 1:
            dist.broadcast(value, group_src=source, group=self._group)
        if name == MODEL:
            self.set_weights({parameter: value})
        elif name == MASTER:
            if self.is_zero:
                safe_set_full_fp32_param(parameter, value)
        elif self.is_zero:
            safe_set_full_optimizer_state(parameter, value, name)
        else:
            self._adam.state[parameter][name].copy_(value)

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 leaves an empty parameter

    def set_step(self, step: int) -> None:
        """`step` updates have been done."""
        for state in self._adam.state.values():
            state["step"] = torch.tensor(float(step))

    @torch.no_grad()
    def set_weights(self, weights: dict[nn.Parameter, Tensor]) -> None:
        """Set the model's weights and their fp32 masters."""
        from deepspeed.utils import safe_set_full_fp32_param

        for parameter, value in weights.items():
            with self.whole([parameter]):
                parameter.copy_(value)
            if self.is_zero:
                safe_set_full_fp32_param(parameter, value.float())

    def whole(self, parameters: list[nn.Parameter]) -> Any:
        """Within it the parameters are there in full, and changes are kept (ZeRO 3 shards them over ranks)."""
        import deepspeed

        if not hasattr(parameters[0], "ds_id"):
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
