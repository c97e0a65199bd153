"""adamw in Triton: many tensors in one launch, by a table of their addresses."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch, warps_for

BLOCK = 1024
"""Values that a program updates at once: four a thread, 128 bits of each float32 tensor; eight spill on sm_90."""
STEPS = 32
"""Blocks of one program."""


@triton.jit
def _block(
    p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, i, inside, divisor, shrink, size, root, b1, b2, eps,
    MASKED: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    if MASKED:
        p = tl.load(p_ptr + i, mask=inside, other=0.0)
        g = tl.load(g_ptr + i, mask=inside, other=0.0)
        m = tl.load(m_ptr + i, mask=inside, other=0.0)
        v = tl.load(v_ptr + i, mask=inside, other=0.0)
    else:
        p = tl.load(p_ptr + i)
        g = tl.load(g_ptr + i)
        m = tl.load(m_ptr + i)
        v = tl.load(v_ptr + i)
    g = tl.div_rn(g, divisor)
    m += b1 * (g - m)
    v = (1.0 - b2) * v + b2 * g * g
    p = p * shrink - size * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
    if MASKED:
        tl.store(p_ptr + i, p, mask=inside)
        tl.store(m_ptr + i, m, mask=inside)
        tl.store(v_ptr + i, v, mask=inside)
        if COPY:
            tl.store(copy_ptr + i, p.to(copy_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(p_ptr + i, p)
        tl.store(m_ptr + i, m)
        tl.store(v_ptr + i, v)
        if COPY:
            tl.store(copy_ptr + i, p.to(copy_ptr.dtype.element_ty))


@triton.jit
def _pointer(table_ptr, place: tl.constexpr, element: tl.constexpr, ALIGNED: tl.constexpr):
    at = tl.load(table_ptr + place).to(tl.pointer_type(element))
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at


@triton.jit
def adamw_update(
    table_ptr, chunk_ptr, divisor_ptr, shrink, size, root, b1, b2, eps,
    COPY: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """table: int64 [tensors, 6], addresses and the size; chunk: int32 [programs, 2], a tensor and a part of it.

    b1, b2: 1 - beta. COPY: dtype of the copies, None for none. ALIGNED: every address is a multiple of 16 bytes.
    """
    divisor = tl.load(divisor_ptr)
    if tl.abs(divisor) < float("inf"):  # NaN is not
        which = chunk_ptr + 2 * tl.program_id(0)
        table_ptr += 6 * tl.load(which).to(tl.int64)
        begin = tl.load(which + 1).to(tl.int64) * (STEPS * BLOCK)
        p_ptr = _pointer(table_ptr, 0, tl.float32, ALIGNED)
        g_ptr = _pointer(table_ptr, 1, tl.float32, ALIGNED)
        m_ptr = _pointer(table_ptr, 2, tl.float32, ALIGNED)
        v_ptr = _pointer(table_ptr, 3, tl.float32, ALIGNED)
        copy_ptr = p_ptr
        if COPY is not None:
            copy_ptr = _pointer(table_ptr, 4, COPY, ALIGNED)
        values = tl.load(table_ptr + 5)
        whole = tl.minimum((values - begin) // BLOCK, STEPS).to(tl.int32)
        for step in tl.range(0, whole, loop_unroll_factor=1):
            i = begin + step * BLOCK + tl.arange(0, BLOCK)
            _block(
                p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, i, i < values, divisor, shrink, size, root, b1, b2, eps,
                False, COPY is not None,
            )  # fmt: skip
        if whole < STEPS:  # what a tensor has beyond its last whole block
            i = begin + whole * BLOCK + tl.arange(0, BLOCK)
            _block(
                p_ptr, g_ptr, m_ptr, v_ptr, copy_ptr, i, i < values, divisor, shrink, size, root, b1, b2, eps,
                True, COPY is not None,
            )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _tables(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The kernel's first two arguments; the same from step to step, since tensors stay where they are."""
    part = BLOCK * STEPS
    chunks = [(n, c) for n, entry in enumerate(addresses) for c in range(-(-entry[5] // part))]
    table = torch.tensor(addresses, dtype=torch.int64)
    return table.to(device), torch.tensor(chunks, dtype=torch.int32).reshape(-1, 2).to(device)


def adamw_launch(
    params: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], copies: list[Tensor],
    divisor: Tensor, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    """See `lst_kernels.adamw`."""
    entries: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    targets = copies or params
    for tensors in zip(params, grads, first, second, targets, strict=True):
        places = tuple(t.data_ptr() for t in tensors)
        entries[not any(place % 16 for place in places)].append((*places, tensors[0].numel()))
    half = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    for aligned, group in entries.items():
        table, chunks = _tables(tuple(group), divisor.device)
        launch(
            adamw_update, (len(chunks),), table, chunks, divisor, 1 - lr * decay, lr / (1 - beta1**step),
            math.sqrt(1 - beta2**step), 1 - beta1, 1 - beta2, eps,
            COPY=half[copies[0].dtype] if copies else None, ALIGNED=aligned, BLOCK=BLOCK, STEPS=STEPS,
            num_warps=warps_for(2 * BLOCK),
        )  # fmt: skip
