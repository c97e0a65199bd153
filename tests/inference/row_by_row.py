"""Plain PyTorch, one row at a time: with it, "cached equals uncached" can be asked bit for bit (SPEC 4, T4).

A matrix product's last bits depend on the number of rows (BLAS picks another kernel, vectorised loops treat their
tails apart), so cached and uncached results agree only within rounding.  Under `RowByRow` the same model computes every
product, norm and angle on one row, and attention on one query with exactly its own keys: the shapes, hence the bits, no
longer depend on what else is computed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def rows(function: Callable[..., Tensor], x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """function(x), along x's first axis; what else it takes is the same for all rows."""
    # A clone each: a fresh allocation is aligned alike whichever row it came from.
    return torch.stack([function(row.clone(), *arguments, **keywords) for row in x])


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """q [b, heads, n, hd]; k, v [b, heads, m, hd]; mask bool, to be broadcast to [b, heads, n, m]."""
    seen = torch.ones(1, dtype=torch.bool) if attn_mask is None else attn_mask
    seen = seen.expand(*q.shape[:3], k.shape[2])
    out = torch.empty_like(q)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        sequence, head, _ = at
        own = seen[*at]
        keys, values = k[sequence, head][own].contiguous(), v[sequence, head][own].contiguous()  # [own keys, hd]
        scores = torch.mv(keys, q[*at].clone()) / q.shape[-1] ** 0.5
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        out[*at] = torch.mv(values.T.contiguous(), wide.softmax(-1).to(values.dtype))
    return out


class RowByRow(TorchFunctionMode):
    """While it is active: the functions below run row by row.

    Attributes:
        calls: how often each was called.
    """

    PER_ROW = (F.linear, F.rms_norm, torch.rms_norm, F.silu, torch.Tensor.cos, torch.Tensor.sin)

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        attends = func is F.scaled_dot_product_attention
        if not attends and (func not in self.PER_ROW or not len(args[0])):
            return func(*args, **keywords)
        self.calls[func.__name__] = self.calls.get(func.__name__, 0) + 1
        return attention(*args, **keywords) if attends else rows(func, *args, **keywords)
