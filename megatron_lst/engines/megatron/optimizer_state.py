"""AdamW's state in the shape of the model's parameters, whatever optimizer holds it, so that any layout reads it back.

Closes three gaps of Megatron-core's distributed optimizer over torch's AdamW: asking for the state before the first
step fails, setting it writes into leaf views, and after a load all parameters share one `step` tensor, which then
advances once a parameter, so that the loss silently drifts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lst.engines.megatron.adamw import FusedAdamW
from megatron_lst.engines.sharded_checkpoint import MASTER, MODEL, STATES


@dataclass(frozen=True)
class _Held:
    """Where the optimizer holds a parameter's state.

    Attributes:
        part: the Megatron-core optimizer that updates it.
        main: the tensor that it updates, under the distributed optimizer a piece of the parameter; None: no piece here.
        pieces: (first, last + 1) of the parameter's elements on each data-parallel rank; None: each has all of them.
    """

    part: Any
    main: Tensor | None
    pieces: tuple[tuple[int, int], ...] | None

    def tensor(self, name: str) -> Tensor | None:
        """The master or a moment of what is held here, flat."""
        if self.main is None:
            return None
        held = self.main if name == MASTER else self.part.optimizer.state[self.main][name]
        return held.detach().view(-1)


class CoreTensors:
    """What a checkpoint holds of each parameter: the weight, its fp32 master and AdamW's two moments.

    One tensor at a time goes from the ranks that hold its pieces to one rank, or back: nobody else has it whole.

    Args:
        core: a Megatron-core optimizer.
        chunks: the model chunks that it updates.
        group: the data-parallel ranks.
    """

    def __init__(self, core: Any, chunks: Sequence[nn.Module], group: dist.ProcessGroup) -> None:
        self._core, self._chunks, self._group = core, chunks, group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    def _held(self) -> dict[nn.Parameter, _Held]:
        """Anew at each use: an optimizer may exchange its tensors."""
        found: dict[nn.Parameter, _Held] = {}
        for part in self._core.chained_optimizers:
            if not hasattr(part, "gbuf_ranges"):
                if part.optimizer is not None:
                    found.update({model: _Held(part, main, None) for model, main in _main_parameters(part)})
                continue
            for buffer, ranges_by_type in zip(part.buffers, part.gbuf_ranges, strict=True):
                for bucket, ranges in zip(buffer.buckets, next(iter(ranges_by_type.values())), strict=True):
                    shard = bucket.grad_data.numel() // self._size
                    for parameter in bucket.params_list:
                        start, end = (i - bucket.offset for i in buffer.param_index_map[parameter][:2])
                        pieces = tuple(
                            (
                                max(start, r * shard) - start,
                                max(min(end, (r + 1) * shard), max(start, r * shard)) - start,
                            )
                            for r in range(self._size)
                        )
                        here = parameter in ranges["param_map"]
                        main = part._get_main_param_and_optimizer_states(parameter)["param"] if here else None
                        found[parameter] = _Held(part, main, pieces)
        return found

    def begin(self) -> None:
        """Before `fetch` and `put`."""
        prime(self._core)
        self._now = self._held()

    @torch.no_grad()
    def fetch(self, parameter: nn.Parameter, name: str, to: int) -> Tensor | None:
        """One of a parameter's tensors, in its shape, on data-parallel rank `to`; None elsewhere. Collective over the
        data-parallel ranks. May be the engine's own tensor."""
        if name == MODEL:
            return parameter.detach() if self._rank == to else None
        held = self._now[parameter]
        mine = held.tensor(name)
        if held.pieces is None or self._size == 1:
            assert mine is not None, "every rank holds all of it"
            return mine.view(parameter.shape) if self._rank == to else None
        sizes = [end - start for start, end in held.pieces]
        if mine is None:
            mine = torch.empty(0, device=parameter.device)
        here = self._rank == to
        whole = torch.empty(parameter.numel() if here else 0, device=parameter.device)
        sent, received = [0] * self._size, sizes if here else [0] * self._size
        sent[to] = mine.numel()
        dist.all_to_all_single(whole, mine, received, sent, group=self._group)
        return whole.view(parameter.shape) if here else None

    @torch.no_grad()
    def put(self, parameter: nn.Parameter, name: str, value: Tensor | None, source: int) -> None:
        """The inverse of `fetch`: every rank takes its piece of what data-parallel rank `source` has."""
        held = self._now[parameter]
        target = parameter.detach() if name == MODEL else held.tensor(name)
        if value is not None:
            value = value.to(device=parameter.device, dtype=parameter.dtype if name == MODEL else torch.float32)
        if self._size > 1 and (name == MODEL or held.pieces is None):
            if value is None:
                value = torch.empty_like(parameter, dtype=parameter.dtype if name == MODEL else torch.float32)
            dist.broadcast(value, group_src=source, group=self._group)
        elif self._size > 1:
            assert held.pieces is not None, "the distributed optimizer's"
            sizes = [end - start for start, end in held.pieces]
            sent = sizes if self._rank == source else [0] * self._size
            received = [0] * self._size
            received[source] = sizes[self._rank]
            leaving = torch.empty(0, device=parameter.device) if value is None else value.contiguous().view(-1)
            value = torch.empty(sizes[self._rank], device=parameter.device)
            dist.all_to_all_single(value, leaving, received, sent, group=self._group)
        if target is not None:
            assert value is not None, "source has a value, the others received one"
            target.copy_(value.view(target.shape))

    @torch.no_grad()
    def share(self, parameters: Sequence[nn.Parameter], source: int, group: dist.ProcessGroup) -> None:
        """What this rank holds of some parameters becomes what world rank `source` holds of them. Collective over the
        group, whose ranks have the same parameters and the same pieces of them."""
        for parameter in parameters:
            held = self._now[parameter]
            for tensor in (parameter.detach(), *(held.tensor(name) for name in (MASTER, *STATES))):
                if tensor is not None:
                    dist.broadcast(tensor, src=source, group=group)

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        return parameter.shape

    def get_step(self) -> int:
        return get_step(self._core)

    def set_step(self, step: int) -> None:
        """`step` updates have been done."""
        set_step(self._core, step)

    def master_parts(self) -> dict[nn.Parameter, tuple[Tensor, slice]]:
        """This rank's part of the fp32 masters: flat tensors to write into, and which of the parameter's elements each
        has. Under the distributed optimizer a rank has parts of some parameters only."""
        found = {}
        for parameter, held in self._held().items():
            if held.main is not None:
                mine = slice(None) if held.pieces is None else slice(*held.pieces[self._rank])
                found[parameter] = (held.main.detach().view(-1), mine)
        return found


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
        in_groups = isinstance(adam, FusedAdamW) or not isinstance(adam, torch.optim.AdamW)
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
