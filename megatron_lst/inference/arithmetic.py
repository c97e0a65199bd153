"""The operations of the inference model, in two forms that are interchangeable.

`Batched` runs each operation over all rows at once: what people run.  A matrix product's last bits depend on the
number of rows (BLAS picks another kernel, vectorised loops treat their tails apart), so cached and uncached results
agree only within rounding.  `RowByRow` runs every operation on one row, and attention on one query with exactly its
own keys: the shapes, hence the bits, no longer depend on what else is computed.  With it, "cached equals uncached"
can be asked bit for bit (SPEC 4, T4).

Shapes: x is [n, d]; q is [n, heads, hd]; keys and values of a sequence are [m, kv_heads, hd].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from megatron_lst.inference.cache import KVCache, LayerCache, StaticKVCache


@dataclass(frozen=True)
class Intervals:
    """Who sees what: the queries of each sequence and the interval of that sequence's keys that each may read.

    Attributes:
        counts: queries of each sequence, in packed order; n together.
        start, end: int64 numpy [n], half-open interval of key indices, counted from the sequence's first key ever;
            never empty, both non-decreasing within a sequence.
    """

    counts: Sequence[int]
    start: np.ndarray
    end: np.ndarray

    @property
    def places(self) -> Sequence[int]:
        return self.counts


@dataclass(frozen=True)
class SlotMask:
    """The same in fixed shapes: one query of each of b sequences, over a `StaticKVCache`.

    Attributes:
        places: int64 [b], the slots of the entries that come with the queries; None: none come.
        mask: bool [b, slots], what each may read; never empty.
    """

    places: Tensor | None
    mask: Tensor


def wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)  # one kernel on a GPU, inside in float32


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return linear(silu(linear(x, gate)) * linear(x, up), down)


@dataclass(frozen=True)
class Rotation:
    """RoPE of some positions: computed once for an axis, applied in every layer. cos, sin [n, 1, hd], sin signed."""

    cos: Tensor
    sin: Tensor


def rotation(position: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotation:
    """position [n] -> angles in `dtype`."""
    exponent = torch.arange(head_size // 2, dtype=dtype, device=position.device) * 2 / head_size
    angle = (position.to(dtype)[:, None] * (1.0 / theta**exponent))[:, None, :]
    cos, sin = angle.cos(), angle.sin()
    return Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """RoPE, rotate-half form. x [n, heads, hd]."""
    x_wide = wide(x)
    first, second = x_wide.chunk(2, -1)
    return (x_wide * by.cos + torch.cat([second, first], -1) * by.sin).to(x.dtype)


class Batched:
    """All rows at once."""

    block = 512
    """Intervals that share one masked attention call; bounds the mask to block x (block + window)."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def swiglu(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return swiglu(x, gate, up, down)

    def rotation(self, position: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotation:
        return rotation(position, head_size, theta, dtype)

    def unit_groups(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Indices of units to pool together: of similar length, so that padding them is cheap."""
        kind = np.ceil(np.log2(lengths)).astype(int)
        return [np.flatnonzero(kind == value) for value in np.unique(kind)]

    def attend(self, q: Tensor, queries: Intervals | SlotMask, store: LayerCache) -> Tensor:
        """Attention of each sequence's queries over its own keys in `store`. q [n, heads, hd] -> [n, heads * hd]."""
        if isinstance(store, StaticKVCache):
            assert isinstance(queries, SlotMask), "slots are read through a mask"
            return self.attend_padded(q[:, None], store.keys, store.values, queries.mask)[:, 0]
        assert isinstance(queries, Intervals), "a growing store is read in intervals"
        if self.block > 1 and isinstance(store, KVCache) and sum(queries.counts) > 1 and max(queries.counts) == 1:
            return self._attend_one_each(q, queries, store)
        out = torch.empty_like(q)
        offset = 0
        for sequence, count in enumerate(queries.counts):
            if not count:
                continue
            held = store.view(sequence)
            for begin in range(0, count, self.block):
                rows = slice(offset + begin, offset + min(begin + self.block, count))
                start, end = queries.start[rows] - held.first, queries.end[rows] - held.first
                low, high = int(start[0]), int(end[-1])
                assert low >= 0, "a key that is still needed was dropped from its cache"
                mask = None
                if (start > low).any() or (end < high).any():
                    index = np.arange(low, high)
                    mask = torch.from_numpy((index >= start[:, None]) & (index < end[:, None])).to(q.device)
                out[rows] = self._attend(q[rows], held.keys[low:high], held.values[low:high], mask)
            offset += count
        return out.flatten(1)

    def _attend_one_each(self, q: Tensor, queries: Intervals, store: KVCache) -> Tensor:
        """One query of each of several sequences, over their caches padded to the longest interval."""
        rows = [sequence for sequence, count in enumerate(queries.counts) if count]
        first = np.array([store.first[sequence] for sequence in rows])
        start, end = queries.start - first, queries.end - first
        low, high = int(start.min()), int(end.max())
        assert low >= 0, "a key that is still needed was dropped from its cache"
        keys, values = store.padded(rows, low, high)
        index = np.arange(low, high)
        mask = torch.from_numpy((index >= start[:, None]) & (index < end[:, None])).to(q.device)
        return self.attend_padded(q[:, None], keys, values, mask)[:, 0]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q [n, heads, hd], k and v [m, kv_heads, hd], mask bool [n, m] -> [n, heads, hd]. Groups stay unexpanded."""
        n, heads, size = q.shape
        group = heads // k.shape[1]
        grouped = q.view(n, -1, group, size).permute(1, 2, 0, 3).reshape(1, -1, group * n, size)
        if mask is not None:
            mask = mask.repeat(group, 1)
        out = scaled_dot_product_attention(grouped, k.transpose(0, 1)[None], v.transpose(0, 1)[None], attn_mask=mask)
        return out[0].view(-1, group, n, size).permute(2, 0, 1, 3).reshape(n, heads, size)

    def attend_padded(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q [m, queries, heads, hd], k and v [m, L, kv_heads, hd], mask bool [m, L] -> [m, queries, heads * hd]."""
        m, count, heads, size = q.shape
        group = heads // k.shape[2]
        grouped = q.view(m, count, -1, group, size).permute(0, 2, 3, 1, 4).reshape(m, -1, group * count, size)
        out = scaled_dot_product_attention(
            grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None, None, :]
        )
        return out.view(m, -1, group, count, size).permute(0, 3, 1, 2, 4).reshape(m, count, heads * size)


class RowByRow(Batched):
    """One row, one query, one unit at a time: slow, and with bits that no neighbour can change."""

    block = 1

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._rows(lambda row: linear(row, weight), x)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._rows(lambda row: rms_norm(row, weight, eps), x)

    def swiglu(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return self._rows(lambda row: swiglu(row, gate, up, down), x)

    def rotation(self, position: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotation:
        each = [rotation(one, head_size, theta, dtype) for one in (position.split(1) if len(position) else [position])]
        return Rotation(torch.cat([r.cos for r in each]), torch.cat([r.sin for r in each]))

    def unit_groups(self, lengths: np.ndarray) -> list[np.ndarray]:
        return [np.array([i]) for i in range(len(lengths))]

    def _rows(self, operation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        # A clone each: a fresh allocation is aligned alike whichever row it came from.
        return torch.stack([operation(row.clone()) for row in x]) if len(x) else operation(x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        assert len(q) == 1
        group = q.shape[1] // k.shape[1]
        k, v = (x.transpose(0, 1).repeat_interleave(group, 0).contiguous() for x in (k, v))
        scores = torch.matmul(k, q[0].clone()[:, :, None])[:, :, 0] / q.shape[-1] ** 0.5
        return torch.matmul(wide(scores).softmax(-1).to(v.dtype)[:, None, :], v)[:, 0][None]

    def attend_padded(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for unit in range(len(q)):
            length = int(mask[unit].sum())
            for query in range(q.shape[1]):
                out[unit, query] = self._attend(q[unit, query][None], k[unit, :length], v[unit, :length], None)[0]
        return out.flatten(2)
