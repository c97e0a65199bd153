"""AdamW's state under any ZeRO stage in the shape of the model's parameters, read and set through DeepSpeed's API."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from megatron_lst.engines.sharded_checkpoint import MASTER, MODEL, STATES


class ZeroState:
    """What `engines.sharded_checkpoint` needs of an optimizer, for a DeepSpeed engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

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

    def _parameters(self) -> list[nn.Parameter]:
        return list(self._engine.module.parameters())

    @torch.no_grad()
    def gather(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """The tensors of each parameter, in its shape; collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self.prime()
        found = {}
        for parameter, master in self.masters().items():
            if self.is_zero:
                moments = {name: safe_get_full_optimizer_state(parameter, name) for name in STATES}
            else:
                moments = {name: self._adam.state[parameter][name] for name in STATES}
            found[parameter] = {MODEL: master.to(parameter.dtype), MASTER: master, **moments}
        return found

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """The fp32 master of each parameter, in its shape; collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {p: safe_get_full_fp32_param(p) if self.is_zero else p.detach() for p in self._parameters()}

    def targets(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Tensors of the same shapes for a load to fill."""
        found = {}
        for parameter in self._parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 leaves an empty parameter
            empty = torch.zeros(shape, device=parameter.device)
            found[parameter] = {MODEL: empty.to(parameter.dtype)} | {name: empty.clone() for name in (MASTER, *STATES)}
        return found

    @torch.no_grad()
    def scatter(self, states: dict[nn.Parameter, dict[str, Tensor]], step: int) -> None:
        """Take what a load has filled; `step` updates have been done."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self.prime()
        self.set_weights({parameter: values[MODEL] for parameter, values in states.items()})
        for parameter, values in states.items():
            if self.is_zero:
                safe_set_full_fp32_param(parameter, values[MASTER])
            for name in STATES:
                if self.is_zero:
                    safe_set_full_optimizer_state(parameter, values[name], name)
                else:
                    self._adam.state[parameter][name].copy_(values[name])
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
