"""Which implementation of the global attention is quickest on this machine's GPU, of those that are right and repeat.

Each is timed as a layer calls it: from the projection's output to attention's, rotary embedding and all, and back to
one gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from .bench import Clock, gate, milliseconds
from .bench_case import Case, Setting
from .interval_attention.tiles import OWN
from .libraries import LIBRARIES, document_attention, label, symbol

Way = Callable[[Tensor], Tensor]


def ways(setting: Setting) -> dict[str, Way]:
    """By label, as many as are here; input [N, G, (R + 2) D]."""
    from . import packed_attention, rotary
    from .packed_attention.reference import heads_of

    start, end, cos, sin, documents = _places(setting)
    size = setting.global_head_dim
    found: dict[str, Way] = {
        OWN: lambda qkv: packed_attention(qkv, cos, sin, start, end, size, backend="triton"),
    }

    def by(library: str) -> Way:
        def way(qkv: Tensor) -> Tensor:
            query, key, value = heads_of(qkv, size)
            query, key = rotary(query, cos, sin), rotary(key, cos, sin)
            return document_attention(library, query, key, value, documents, setting.document_tokens)

        return way

    for library in LIBRARIES:
        with contextlib.suppress(Exception):  # a broken build fails in many ways; whatever the way, it cannot be used
            symbol(library)
            found[label(library)] = by(library)
    return found


def _places(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    units = setting.rows * setting.units_per_row
    start, end, documents = setting.causal(units, None)
    half = setting.global_head_dim // 2
    angle = torch.arange(units)[:, None] * 1e4 ** -(torch.arange(half) / half)
    angle = angle.to(setting.device)
    return start, end, angle.cos(), angle.sin(), documents


def measure(
    setting: Setting,
    tell: Callable[[str], object] = print,
    clock: Clock = milliseconds,
    measured: dict[str, Way] | None = None,
) -> dict[str, float]:
    """Milliseconds of a forward and a backward pass, by label; what is wrong or does not repeat is left out.

    Args:
        measured: what is compared; None: `ways`.
    """
    from . import packed_attention

    start, end, cos, sin, _ = _places(setting)
    groups, size = setting.global_kv_heads, setting.global_head_dim
    qkv = setting.randn(len(start), groups, (setting.global_heads // groups + 2) * size)

    def reference(qkv: Tensor) -> Tensor:
        return packed_attention(qkv, cos, sin, start, end, size, backend="reference")

    found = {}
    for name, way in (ways(setting) if measured is None else measured).items():
        try:
            gate(Case("attention", f"D={size}", name, way, reference, [qkv], 0.0, 0.0, "flops"), held=True)
            given = qkv.detach().requires_grad_()
            grad = torch.randn_like(way(given))
            once, twice = (torch.autograd.grad(way(given), given, grad)[0] for _ in range(2))
            if not torch.equal(once, twice):
                raise AssertionError("its gradient is not the same bits twice")
            found[name] = clock(lambda _, way=way, given=given, grad=grad: torch.autograd.grad(way(given), given, grad))
        except Exception as error:  # whatever it threw, it cannot be taken
            tell(f"{name}: left out: {error}")
        else:
            tell(f"{name}: {found[name]:.3f} ms")
    return found
