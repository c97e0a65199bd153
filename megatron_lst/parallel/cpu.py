"""Everything that knows it is on a CPU: lets Megatron-core run on CPU tensors and gloo. Inert where CUDA is there.

Every patch sends a device look-up to the CPU; no arithmetic is changed, so that what is tested on a laptop is what a
cluster runs.  `install` comes before the first import from `megatron.core`.
"""

import contextlib
import functools
import logging
import os
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_lst.gpu import gpu_is_usable

_installed = False


def on_cpu() -> bool:
    """True where there is no CUDA device. Raises UserError where one is there and cannot be used."""
    return not gpu_is_usable()


def backend() -> str:
    """The torch.distributed backend of all groups: gloo on a CPU, nccl elsewhere. CPU tensors travel in groups of gloo
    that ask for it, and there are few."""
    return "gloo" if on_cpu() else "nccl"


def device() -> torch.device:
    """This process's device; on GPUs the one of LOCAL_RANK, which becomes the current one."""
    if on_cpu():
        return torch.device("cpu")
    # The rows of a step differ in length: segments that grow leave no holes between them.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(local)
    return local


def install() -> None:
    """Patch torch.cuda's device look-ups once; nothing happens where CUDA is there."""
    global _installed
    if _installed or not on_cpu():
        return
    _installed = True
    cpu, cuda = torch.device("cpu"), torch.cuda

    # Buffers, receive tensors and mappings ask for the current device.
    cuda.current_device = lambda: cpu  # type: ignore[assignment,return-value]
    for name in ("set_device", "synchronize", "empty_cache"):
        # One function object each: dynamo refuses one object under two names.
        setattr(cuda, name, lambda *args, **kwargs: None)

    # Literal device="cuda" in the schedules' counters and the gradient clipping.
    for name in ("tensor", "zeros", "ones", "empty", "full", "arange"):
        setattr(torch, name, _on_cpu_instead(getattr(torch, name), cpu))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[assignment,method-assign]

    # The tracker of "CUDA" random states forks the CPU's generator instead.
    get_state, set_state = torch.get_rng_state, torch.set_rng_state
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: get_state()  # type: ignore[assignment]
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, device=None: set_state(state)  # type: ignore[assignment]
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)  # type: ignore[assignment,return-value]
    cuda.manual_seed_all = lambda seed: torch.default_generator.manual_seed(seed)  # type: ignore[assignment,return-value]

    # Newer releases of Megatron-core ask for the current stream around the gradient reduction.
    stream = types.SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
    cuda.current_stream = lambda device=None: stream  # type: ignore[assignment,return-value]
    cuda.default_stream = lambda device=None: stream  # type: ignore[assignment,return-value]

    from megatron.core import jit
    from megatron.core.tensor_parallel import random as parallel_random

    jit.disable_jit_fuser()  # compiled fusions would build C++ at start-up
    # Megatron-core's own setter is queued until CUDA starts, that is for ever: forked regions would silently share one
    # stream of random numbers.  Its warning that the CPU's state moved inside such a region is then no news.
    parallel_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: set_state(state)
    logging.getLogger(parallel_random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )

    from megatron.core.optimizer import clip_grads

    clip_grads.l2_norm_impl = _l2_norm


def _l2_norm(
    chunk_size: int, overflow: Any, tensor_lists: list[list[torch.Tensor]], per_tensor: bool, *_: Any
) -> tuple[torch.Tensor, None]:
    """Norm of all tensors together, accumulated in float64.

    torch.norm on a CPU adds float32 squares one after the other: 1e-4 of the gradient norm of a 3M-element embedding is
    lost, and how much depends on how a layout shards it.  On a GPU the reduction is a tree and loses nothing.
    """
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensors in tensor_lists for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)).float()[None], None


def _on_cpu_instead(factory: Callable[..., Any], cpu: torch.device) -> Callable[..., Any]:
    @functools.wraps(factory)
    def wrapped(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is not None and torch.device(device).type == "cuda":
            device = cpu
        return factory(*args, device=device, **kwargs)

    return wrapped


@contextlib.contextmanager
def optimizer_types() -> Iterator[None]:
    """Within it CPU tensors call themselves `torch.cuda.FloatTensor` and so on.

    Megatron-core's optimizers dispatch on that string, when they are built and when they clip. Outside nothing is
    changed: other libraries read the same string and mean it.
    """
    if not on_cpu():
        yield
        return
    plain = torch.Tensor.type

    def type_as_cuda(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            return plain(self, dtype, *args, **kwargs)
        return plain(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_as_cuda  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.Tensor.type = plain  # type: ignore[method-assign]
