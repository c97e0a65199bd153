"""AdamW's state in the shape of the model's parameters, whatever optimizer holds it, so that any layout reads it back.

Closes three gaps of Megatron-core's distributed optimizer over torch's AdamW: asking for the state before the first
step fails, setting it writes into leaf views, and after a load all parameters share one `step` tensor, which then
advances once a parameter, so that the loss silently drifts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lst.engines.sharded_checkpoint import MASTER, MODEL, STATES


class CoreTensors:
    """What a checkpoint holds of each parameter: the weight, its fp32 master and AdamW's two moments.

    Args:
        core: a Megatron-core optimizer.
        chunks: the model chunks that it updates.
    """

    def __init__(self, core: Any, chunks: Sequence[nn.Module]) -> None:
        self._core, self._chunks = core, chunks

    def _parameters(self) -> Iterator[nn.Parameter]:
        for chunk in self._chunks:
            yield from chunk.parameters()

    def gather(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """The tensors of each parameter, in its shape; collective."""
        states = gather(self._core)
        return {parameter: {MODEL: parameter.detach(), **states[parameter]} for parameter in self._parameters()}

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """The fp32 master of each parameter, in its shape; collective."""
        states = gather(self._core, (MASTER,))
        return {parameter: states[parameter][MASTER] for parameter in self._parameters()}

    def targets(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Tensors of the same shapes for a load to fill; the weights themselves are filled in place."""
        return {
            parameter: {MODEL: parameter.detach()}
            | {name: torch.zeros(parameter.shape, device=parameter.device) for name in (MASTER, *STATES)}
            for parameter in self._parameters()
        }

    def scatter(self, states: dict[nn.Parameter, dict[str, Tensor]], step: int) -> None:
        """Take what a load has filled; `step` updates have been done."""
        scatter(self._core, states, step)

    def get_step(self) -> int:
        return get_step(self._core)

    def master_parts(self) -> dict[nn.Parameter, tuple[Tensor, slice]]:
        return master_parts(self._core)


def prime(core: Any) -> None:
    """Give every parameter its zero state, where the optimizer has not stepped yet."""
    fresh = not get_step(core)
    for adam in _adams(core):
        for group in adam.param_groups:
            for parameter in group["params"]:
                state = adam.state[parameter]
                for name in STATES:
                    state.setdefault(name, torch.zeros_like(parameter))
    if fresh:
        set_step(core, 0)


def get_step(core: Any) -> int:
    """Updates so far; torch keeps the number with each parameter, the fused optimizers with each group."""
    for adam in _adams(core):
        for state in adam.state.values():
            if "step" in state:
                return int(state["step"])
        for group in adam.param_groups:
            if group["params"] and "step" in group:
                return int(group["step"])
    return 0


def set_step(core: Any, step: int) -> None:
    """Set the number of updates, one tensor for each parameter."""
    for adam in _adams(core):
        in_groups = not isinstance(adam, torch.optim.AdamW)
        for group in adam.param_groups:
            if in_groups:
                group["step"] = step
                continue
            for parameter in group["params"]:
                device = parameter.device if group.get("fused") else None
                adam.state[parameter]["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)


def _adams(core: Any) -> Iterator[Any]:
    for part in core.chained_optimizers:
        if part.optimizer is not None:
            yield part.optimizer


@torch.no_grad()
def gather(core: Any, names: Sequence[str] = (MASTER, *STATES)) -> dict[nn.Parameter, dict[str, Tensor]]:
    """fp32 master weight, exp_avg and exp_avg_sq of each model parameter, in its shape; collective.

    Under the distributed optimizer the shards are joined bucket by bucket over the data-parallel group; otherwise
    the tensors are the optimizer's own.
    """
    if set(names) & set(STATES):
        prime(core)
    found: dict[nn.Parameter, dict[str, Tensor]] = {}
    for part in core.chained_optimizers:
        if hasattr(part, "gbuf_ranges"):
            found.update(_joined(part, names))
        elif part.optimizer is not None:
            for model, main in _main_parameters(part):
                state = part.optimizer.state[main]
                found[model] = {name: main.detach() if name == MASTER else state[name] for name in names}
    return found


def _joined(part: Any, names: Sequence[str]) -> dict[nn.Parameter, dict[str, Tensor]]:
    found: dict[nn.Parameter, dict[str, Tensor]] = {}
    ranks = part.data_parallel_group.size()
    for buffer, ranges_by_type in zip(part.buffers, part.gbuf_ranges, strict=True):
        for bucket, ranges in zip(buffer.buckets, next(iter(ranges_by_type.values())), strict=True):
            size = bucket.grad_data.numel()
            for name in names:
                shard = torch.zeros(size // ranks, device=bucket.grad_data.device)
                for parameter, where in ranges["param_map"].items():
                    held = part._get_main_param_and_optimizer_states(parameter)
                    local = where["gbuf_local"]
                    shard[local.start : local.end] = held["param" if name == MASTER else name].view(-1)
                whole = shard
                if ranks > 1:
                    whole = shard.new_empty(size)
                    dist.all_gather_into_tensor(whole, shard, group=part.data_parallel_group)
                for parameter in bucket.params_list:
                    start, end = (i - bucket.offset for i in buffer.param_index_map[parameter][:2])
                    found.setdefault(parameter, {})[name] = whole[start:end].view(parameter.shape)
    return found


@torch.no_grad()
def scatter(core: Any, states: dict[nn.Parameter, dict[str, Tensor]], step: int) -> None:
    """The inverse of `gather`: take each rank's part of the states; `step` updates have been done."""
    prime(core)
    for part in core.chained_optimizers:
        if hasattr(part, "gbuf_ranges"):
            for ranges_by_type in part.gbuf_ranges:
                for ranges in next(iter(ranges_by_type.values())):
                    for parameter, where in ranges["param_map"].items():
                        held = part._get_main_param_and_optimizer_states(parameter)
                        mine = slice(where["param"].start, where["param"].end)
                        for name in (MASTER, *STATES):
                            target = held["param" if name == MASTER else name]
                            target.view(-1).copy_(states[parameter][name].reshape(-1)[mine])
        elif part.optimizer is not None:
            for model, main in _main_parameters(part):
                main.copy_(states[model][MASTER])
                for name in STATES:
                    part.optimizer.state[main][name].copy_(states[model][name])
    set_step(core, step)


def master_parts(core: Any) -> dict[nn.Parameter, tuple[Tensor, slice]]:
    """This rank's part of the fp32 masters: flat tensors to write into, and which of the parameter's elements each has.
    Under the distributed optimizer a rank has parts of some parameters only."""
    found: dict[nn.Parameter, tuple[Tensor, slice]] = {}
    for part in core.chained_optimizers:
        if hasattr(part, "gbuf_ranges"):
            for ranges_by_type in part.gbuf_ranges:
                for ranges in next(iter(ranges_by_type.values())):
                    for parameter, where in ranges["param_map"].items():
                        main = part._get_main_param_and_optimizer_states(parameter)["param"]
                        found[parameter] = (main.detach().view(-1), slice(where["param"].start, where["param"].end))
        elif part.optimizer is not None:
            for model, main in _main_parameters(part):
                found[model] = (main.detach().view(-1), slice(None))
    return found


def _main_parameters(part: Any) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """(model parameter, the one that the optimizer updates) of an optimizer that is not distributed."""
    if not hasattr(part, "float16_groups"):
        for group in part.optimizer.param_groups:
            yield from ((parameter, parameter) for parameter in group["params"])
        return
    for models, mains in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
        yield from zip(models, mains, strict=True)
    for group in part.fp32_from_fp32_groups:
        yield from ((parameter, parameter) for parameter in group)
