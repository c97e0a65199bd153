"""Where a step's time goes: by module, forward and backward, and by kernel.

The calls into the modules are marked with `record_function`.  An operation belongs to the innermost mark around it; one
of the backward pass belongs where the forward operation with its autograd sequence number was.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "module:"
BACKWARD = "autograd::engine::evaluate_function"
METHODS = {
    "encoder": ("states", "patches"),
    "global_transformer": ("forward",),
    "decoder": ("forward",),
    "decoder.layers.*.cross_attention": ("of_intervals",),
    "decoder.layers.*.block": ("forward",),
    "decoder.head": ("forward",),
    "text_head": ("forward",),
    "head": ("forward",),
    "global_transformer.layers.*.self_attention": ("forward",),
    "global_transformer.layers.*.mlp": ("forward",),
}
"""What is marked, by the module's name with layer numbers as *."""


@dataclass(frozen=True)
class Profile:
    """Milliseconds of one step.

    Attributes:
        modules: by mark, {"forward": ms, "backward": ms}; what is inside another mark counts there alone.
        kernels: the longest ones, {"name", "milliseconds", "calls"}; operators on a CPU.
        busy: milliseconds of all kernels, copies among them; of all operators on a CPU.
    """

    modules: dict[str, dict[str, float]]
    kernels: list[dict[str, Any]]
    busy: float


def _wrap(method: Callable[..., Any], mark: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def marked(*arguments: Any, **options: Any) -> Any:
        with record_function(MARK + mark):
            return method(*arguments, **options)

    return marked


@contextmanager
def _marks(engine: Any) -> Iterator[None]:
    with ExitStack() as stack:

        def mark(owner: Any, method: str, name: str) -> None:
            setattr(owner, method, _wrap(getattr(owner, method), name))
            stack.callback(delattr, owner, method)  # the class's own comes back

        for chunk in engine.chunks:
            for name, module in chunk.named_modules():
                pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
                for method in METHODS.get(pattern, ()):
                    mark(module, method, pattern)
        mark(engine.optimizer, "step", "optimizer")
        yield


def _parents(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def where_time_goes(engine: Any, step: Callable[[], Any]) -> Profile:
    """Profile one step of a Megatron engine."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _marks(engine), profile(activities=activities) as recorded:
        step()
        if cuda:
            torch.cuda.synchronize()
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CPU]
    marks: list[str | None] = []
    made_in: dict[int, str] = {}
    for event in events:
        inside = next((p.name[len(MARK) :] for p in _parents(event) if p.name.startswith(MARK)), None)
        marks.append(inside)
        backward = any(p.name.startswith(BACKWARD) for p in _parents(event))
        if inside is not None and event.sequence_nr >= 0 and not backward:
            made_in.setdefault(event.sequence_nr, inside)
    modules: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    for event, inside in zip(events, marks, strict=True):
        pass_ = next((p for p in _parents(event) if p.name.startswith(BACKWARD)), None)
        if cuda and event.name.startswith(MARK):
            continue  # a mark's device time is what it encloses, which counts by itself
        name = inside or (made_in.get(pass_.sequence_nr, "other") if pass_ is not None else "other")
        modules[name]["forward" if pass_ is None else "backward"] += getattr(event, own) / 1000
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for average in recorded.key_averages():
        is_mark = average.key.startswith((MARK, BACKWARD, "ProfilerStep", "Optimizer."))
        if not is_mark and (not cuda or average.device_type == torch.autograd.DeviceType.CUDA):
            times[average.key] += getattr(average, own) / 1000
            calls[average.key] += average.count
    kernels = [{"name": name, "milliseconds": ms, "calls": calls[name]} for name, ms in times.most_common(20) if ms > 0]
    by_module = {name: dict(spent) for name, spent in modules.items() if sum(spent.values()) > 0}
    return Profile(by_module, kernels, times.total())


def module_table(modules: dict[str, dict[str, float]]) -> str:
    """Longest first; a mark's own time, without what is marked inside it."""
    total = sum(sum(spent.values()) for spent in modules.values()) or 1.0
    lines = [f"  {'module':46}{'forward ms':>12}{'backward ms':>12}{'share':>8}"]
    for name, spent in sorted(modules.items(), key=lambda item: -sum(item[1].values())):
        share = sum(spent.values()) / total
        lines.append(f"  {name:46}{spent['forward']:12.2f}{spent['backward']:12.2f}{100 * share:7.1f}%")
    return "\n".join(lines)


def kernel_table(kernels: list[dict[str, Any]]) -> str:
    lines = [f"  {'kernel or operator':66}{'ms':>10}{'calls':>8}"]
    lines += [f"  {k['name'][:64]:66}{k['milliseconds']:10.2f}{k['calls']:8d}" for k in kernels]
    return "\n".join(lines)
