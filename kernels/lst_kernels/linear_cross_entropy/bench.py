"""linear_cross_entropy in chunks beside whole logits, eager and compiled: the price of not holding them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..bench_case import Case, Setting

CHUNKS = (2048, 4096, 8192)


def cases(setting: Setting) -> Iterator[Case]:
    """FLOPs counted: the useful ones, two products forward and four backward a logit, recomputation not among them."""
    from .. import linear_cross_entropy

    tokens, size = int(setting.patch_lengths().sum()), setting.vocabulary
    inputs = [setting.randn(tokens, setting.local_dim), setting.randn(size, setting.local_dim) * 0.05]
    labels = torch.randint(0, size, (tokens,), device=setting.device)

    def chunked(chunk: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda hidden, weight: linear_cross_entropy(hidden, weight, labels, chunk=chunk)

    def whole(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.t()
        return cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="none")

    work = 2.0 * tokens * size * setting.local_dim
    for case, name, run in (
        *((f"chunk={chunk}", "chunked", chunked(chunk)) for chunk in CHUNKS),
        ("whole", "eager", whole),
        ("whole", "torch.compile", torch.compile(whole)),
    ):
        yield Case("linear_cross_entropy", case, name, run, whole, inputs, work, 2 * work, "flops")
