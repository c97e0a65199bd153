"""A stand-in for Transformer Engine on a CPU: its linear layer's contract, with numbers really rounded to fp8.

It takes the place of the package alone. Megatron-core's wrappers, its autocast, its recomputation and its flag for a
step's first micro-batch are the real ones, and they are what the tests are about.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


class State:
    """FP8GlobalStateManager: what the innermost autocast says."""

    enabled = False
    recipe: Any = None

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.enabled

    @staticmethod
    def is_fp8_available() -> tuple[bool, str]:
        return True, ""

    @staticmethod
    def is_fp8_block_scaling_available() -> tuple[bool, str]:
        return False, "needs CUDA 12.9"

    @staticmethod
    def is_mxfp8_available() -> tuple[bool, str]:
        return False, "needs Blackwell"


@contextlib.contextmanager
def autocast(enabled: bool = True, fp8_recipe: Any = None, fp8_group: Any = None) -> Iterator[None]:
    before = State.enabled, State.recipe
    State.enabled, State.recipe = enabled, fp8_recipe
    try:
        yield
    finally:
        State.enabled, State.recipe = before


def rounded(x: Tensor, kind: torch.dtype, group: Any = None) -> Tensor:
    """x through fp8 with one scale for the tensor; over the group where it holds a shard of it."""
    largest = x.detach().abs().max().float()
    if group is not None:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    scale = torch.finfo(kind).max / largest.clamp(min=1e-12)
    return ((x.float() * scale).to(kind).float() / scale).to(x.dtype)


class Product(torch.autograd.Function):
    """x @ weight^T with the weight as it was quantised; the gradient is quantised too. x comes quantised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantised: Tensor, gradients: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, quantised)
        ctx.gradients = gradients
        return x @ quantised.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, quantised = ctx.saved_tensors
        gradient = rounded(gradient, ctx.gradients)
        return gradient @ quantised, gradient.flatten(0, -2).t() @ x.flatten(0, -2), None, None


class Linear(nn.Module):
    """transformer_engine.pytorch.Linear as Megatron-core's TELinear calls it. Counts what all of them do."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool,
        fuse_wgrad_accumulation: bool,
        tp_group: Any,
        tp_size: int,
        get_rng_state_tracker: Any,
        init_method: Callable[[Tensor], Any],
        bias: bool,
        return_bias: bool,
        parallel_mode: str,
        params_dtype: torch.dtype,
        device: Any,
        rng_tracker_name: str | None = None,
        **unexpected: Any,
    ) -> None:
        super().__init__()
        assert not bias and not fuse_wgrad_accumulation and not unexpected, unexpected
        column = parallel_mode == "column"
        shape = (out_features // tp_size, in_features) if column else (out_features, in_features // tp_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=params_dtype, device=device))
        init_method(self.weight)
        self.weight.tensor_model_parallel, self.weight.partition_dim = True, 0 if column else 1  # type: ignore[attr-defined]
        self.weight.partition_stride = 1  # type: ignore[attr-defined]
        self.parallel_mode, self.tp_group, self.tp_size = parallel_mode, tp_group, tp_size
        self.sequence_parallel = sequence_parallel and tp_size > 1
        self.save_original_input = False
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.quantised: Tensor | None = None

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        from megatron.core.tensor_parallel import mappings

        column, sharded, group = self.parallel_mode == "column", self.sequence_parallel, self.tp_group
        fp8 = State.enabled
        self.counts["fp8" if fp8 else "bf16"] += 1
        if fp8:
            for tensor in (x, self.weight):
                assert tensor.shape[:-1].numel() % 8 == 0 and tensor.shape[-1] % 16 == 0, tuple(tensor.shape)
            if self.quantised is None or is_first_microbatch is None or is_first_microbatch:
                self.quantised = rounded(self.weight.detach(), torch.float8_e4m3fn)
                self.counts["quantised"] += 1
            x = x + (rounded(x, torch.float8_e4m3fn, group if sharded and column else None) - x).detach()
        if column:
            x = (
                mappings.gather_from_sequence_parallel_region(x, group=group)
                if sharded
                else mappings.copy_to_tensor_model_parallel_region(x, group=group)
            )
        if fp8:
            hybrid = State.recipe.fp8_format is Format.HYBRID
            gradients = torch.float8_e5m2 if hybrid else torch.float8_e4m3fn
            out = Product.apply(x, self.weight, self.quantised, gradients)
        else:
            out = x @ self.weight.t()
        if column:
            return out
        if sharded:
            return mappings.reduce_scatter_to_sequence_parallel_region(out, group=group)
        return mappings.reduce_from_tensor_model_parallel_region(out, group=group)


class Format(Enum):
    E4M3 = "e4m3"
    HYBRID = "hybrid"


class Recipe:
    def __init__(self, fp8_format: Format = Format.HYBRID, **_: Any) -> None:
        self.fp8_format = fp8_format


class Recomputed(torch.autograd.Function):
    """transformer_engine.pytorch.distributed.checkpoint: computes again under the autocast of the first time."""

    @staticmethod
    def forward(ctx: Any, function: Any, keywords: dict[str, Any], *inputs: Any) -> Any:
        ctx.function, ctx.keywords, ctx.state = function, keywords, (State.enabled, State.recipe)
        ctx.inputs = inputs
        with torch.no_grad():
            return function(*inputs, **keywords)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        inputs = [i.detach().requires_grad_(i.requires_grad) if torch.is_tensor(i) else i for i in ctx.inputs]
        with torch.enable_grad(), autocast(*ctx.state):
            outputs = ctx.function(*inputs, **ctx.keywords)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if torch.is_tensor(o) and o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return None, None, *(i.grad if torch.is_tensor(i) else None for i in inputs)


def checkpoint(
    function: Any, *inputs: Any, distribute_saved_activations: Any, get_rng_state_tracker: Any, tp_group: Any, **kw: Any
) -> Any:
    return Recomputed.apply(function, kw, *inputs)


ROUTING = ("topk_with_score_function", "compute_score_for_moe_aux_loss", "moe_aux_loss")
"""Functions of mixtures of experts, which Megatron-core imports and nothing here calls."""


def install() -> None:
    """Put the stand-in where `import transformer_engine` finds it; before the first import of Megatron-core."""
    assert "megatron.core" not in sys.modules, "Megatron-core looks for Transformer Engine when it is imported"
    empty = {
        name: type(name, (nn.Module,), {})
        for name in ("LayerNormLinear", "RMSNorm", "DotProductAttention", "GroupedLinear")
    }
    names = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling")
    recipes = {name: type(name, (Recipe,), {}) for name in names}
    contents: dict[str, dict[str, Any]] = {
        "": {"__version__": "2.9.0"},
        ".common": {},
        ".common.recipe": {"Format": Format, **recipes},
        ".pytorch": {
            "Linear": Linear,
            "fp8_autocast": autocast,
            "ops": SimpleNamespace(Sequential=None, FusibleOperation=None),
            **empty,
        },
        ".pytorch.fp8": {"FP8GlobalStateManager": State, "fp8_autocast": autocast, "fp8_model_init": None},
        ".pytorch.distributed": {
            "checkpoint": checkpoint,
            "activation_recompute_forward": None,
            "CudaRNGStatesTracker": type("Tracker", (), {}),
        },
        ".pytorch.router": {f"fused_{name}": None for name in ROUTING},
        ".pytorch.tensor": {"QuantizedTensor": type("QuantizedTensor", (), {})},
    }
    for name, values in contents.items():
        module = ModuleType(f"transformer_engine{name}")
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(values)
        sys.modules[module.__name__] = module
        above, _, last = module.__name__.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)

    from megatron_lst.parallel import accelerators

    plain = accelerators.probe
    accelerators.probe = lambda purpose, name: State if purpose == "fp8" else plain(purpose, name)  # type: ignore[assignment]
