"""What a batch of sequences remembers between calls: `Cache`, with one `LayerCache` for each attention of the model.

A layer hands its new keys and values to its cache and reads them back through it: `append`, `attend`, `trim`.  Who
may read what is an argument, the same for all layers of a module.  There are three kinds of layer cache:

KVCache         the sequences grow at different speeds
OneCallKVCache  one call without a past, for scoring
StaticKVCache   fixed slots that never move, for CUDA graphs

    b sequences; n queries, those of one sequence after those of another; m keys; hd head size
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_lst.config.schema import ModelConfig

QUERY_BLOCK = 512
"""Queries of one masked attention call; bounds its mask to QUERY_BLOCK x (QUERY_BLOCK + window)."""

DROPPED = "a key that is still needed was dropped from its cache"


@dataclass(frozen=True)
class Intervals:
    """Which keys each query may read: an interval of its own sequence's, counted from the sequence's first key ever.

    Attributes:
        counts: queries of each sequence; n together.
        start, end: int64 numpy [n], half-open, never empty, both non-decreasing within a sequence.
    """

    counts: Sequence[int]
    start: np.ndarray
    end: np.ndarray

    @property
    def places(self) -> Sequence[int]:
        """Where the entries go that come with the queries: behind the others of their sequence."""
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


Visible = Intervals | SlotMask
Places = Sequence[int] | Tensor
"""Where new entries go: how many to each sequence, or for a `StaticKVCache` the slot of each."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention; query head i reads key/value head i // group.

    Args:
        q: [b, n, heads, hd].
        k, v: [b, m, kv_heads, hd].
        mask: bool [b, n, m], or [b, 1, m] for all n alike; None: every query reads every key.

    Returns:
        [b, n, heads * hd].
    """
    b, n, heads, size = q.shape
    group = heads // k.shape[2]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    # Heads that share keys become more queries of one head, [b, kv_heads, group * n, hd]: no key is copied.
    if n == 1:
        out = scaled_dot_product_attention(
            q.view(b, -1, group, size), keys, values, attn_mask=None if mask is None else mask[:, None]
        )
        return out.reshape(b, 1, heads * size)
    q = q.view(b, n, -1, group, size).permute(0, 2, 3, 1, 4).reshape(b, -1, group * n, size)  # as above, n queries each
    if mask is not None:
        mask = (mask if mask.shape[1] == 1 else mask.repeat(1, group, 1))[:, None]  # [b, 1, 1 or group * n, m]
    out = scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return out.view(b, -1, group, n, size).permute(0, 3, 1, 2, 4).reshape(b, n, heads * size)  # and back


class LayerCache(ABC):
    """Keys and values of one attention layer."""

    @abstractmethod
    def append(self, places: Places, keys: Tensor, values: Tensor) -> None:
        """Take new entries, both [entries, kv_heads, hd]."""

    @abstractmethod
    def attend(self, q: Tensor, visible: Visible) -> Tensor:
        """Attention of each sequence's queries over its own entries. q [n, heads, hd] -> [n, heads * hd]."""

    def trim(self) -> None:  # noqa: B027 (most kinds keep all)
        """Forget what no later query can read."""

    @property
    def allocated_bytes(self) -> int:
        return 0


@dataclass(frozen=True)
class _Entries:
    """The entries of one sequence, [m, kv_heads, hd] each; `first` is the index of entry 0."""

    keys: Tensor
    values: Tensor
    first: int


class _Ragged(LayerCache):
    """Attention of as many queries a sequence as come, sequence by sequence."""

    @abstractmethod
    def view(self, sequence: int) -> _Entries: ...

    def attend(self, q: Tensor, visible: Visible) -> Tensor:
        assert isinstance(visible, Intervals), "this cache is read in intervals"
        out = q.new_empty(len(q), q.shape[1] * q.shape[2]) if len(q) > 1 else q
        offset = 0
        for sequence, count in enumerate(visible.counts):
            if not count:
                continue
            held = self.view(sequence)
            for begin in range(0, count, QUERY_BLOCK):
                rows = slice(offset + begin, offset + min(begin + QUERY_BLOCK, count))
                start, end = visible.start[rows] - held.first, visible.end[rows] - held.first  # among the held entries
                low, high = int(start[0]), int(end[-1])  # both never decrease: all keys of the block
                assert low >= 0, DROPPED
                mask = None
                if len(start) > 1 and ((start > low).any() or (end < high).any()):
                    mask = _interval_mask(start, end, low, high, q.device)[None]
                seen = attention(q[rows][None], held.keys[None, low:high], held.values[None, low:high], mask)[0]
                if len(seen) == len(q):
                    return seen
                out[rows] = seen
            offset += count
        return out


def _interval_mask(start: np.ndarray, end: np.ndarray, low: int, high: int, device: torch.device) -> Tensor:
    """bool [n, high - low]: which of the keys [low, high) lie in each query's interval."""
    index = np.arange(low, high)
    return torch.from_numpy((index >= start[:, None]) & (index < end[:, None])).to(device)


class KVCache(_Ragged):
    """Keys and values [batch, capacity, kv_heads, hd]; capacity doubles when it is full.

    With a window it drops what no later query can read: local attention costs a constant amount of memory however
    long a sequence grows.

    Args:
        batch: number of sequences.
        window: entries that a later query may still need; None: all.
    """

    def __init__(self, batch: int, window: int | None = None) -> None:
        self.window = window
        self.length = [0] * batch
        """Entries held of each sequence."""
        self.first = [0] * batch
        """Index of the oldest held entry of each sequence, counted from its first entry ever."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, places: Places, keys: Tensor, values: Tensor) -> None:
        """places[i] of the entries go to sequence i."""
        assert not isinstance(places, Tensor), "a growing cache takes counts"
        needed = max((self.length[i] + count for i, count in enumerate(places)), default=0)
        self._reserve(needed, keys)
        assert self.keys is not None
        assert self.values is not None
        if all(count == 1 for count in places) and len(set(self.length)) == 1:
            self.keys[:, self.length[0]] = keys  # one entry to each sequence, all at the same place: one write
            self.values[:, self.length[0]] = values
        else:
            offset = 0
            for i, count in enumerate(places):
                if count:
                    place = slice(self.length[i], self.length[i] + count)
                    self.keys[i, place] = keys[offset : offset + count]
                    self.values[i, place] = values[offset : offset + count]
                    offset += count
        for i, count in enumerate(places):
            self.length[i] += count

    def view(self, sequence: int) -> _Entries:
        assert self.keys is not None
        assert self.values is not None
        length = self.length[sequence]
        return _Entries(self.keys[sequence, :length], self.values[sequence, :length], self.first[sequence])

    def attend(self, q: Tensor, visible: Visible) -> Tensor:
        assert isinstance(visible, Intervals), "this cache is read in intervals"
        if len(q) <= 1 or max(visible.counts) > 1:
            return super().attend(q, visible)
        # One query of each of several sequences: one call, the sequences padded to the longest interval.
        rows = [sequence for sequence, count in enumerate(visible.counts) if count]
        first = np.array([self.first[sequence] for sequence in rows])
        start, end = visible.start - first, visible.end - first  # [rows], among the held entries of each sequence
        low, high = int(start.min()), int(end.max())
        assert low >= 0, DROPPED
        mask = _interval_mask(start, end, low, high, q.device)[:, None]
        assert self.keys is not None
        assert self.values is not None
        keys, values = self.keys[:, low:high], self.values[:, low:high]  # past a sequence's end: zeros or old entries
        if len(rows) < len(self.length):
            index = torch.tensor(rows, device=q.device)
            keys, values = keys[index], values[index]
        return attention(q[:, None], keys, values, mask)[:, 0]

    def trim(self) -> None:
        """Forget entries outside the window, where that frees at least as much as it moves."""
        if self.window is None or self.keys is None or self.values is None:
            return
        for i, length in enumerate(self.length):
            if length >= 2 * self.window:  # so that an entry is moved once for each one dropped
                dropped = length - self.window
                for tensor in (self.keys, self.values):
                    tensor[i, : self.window] = tensor[i, dropped:length].clone()  # the two may overlap
                self.length[i] = self.window
                self.first[i] += dropped
        roomy = max(2 * self.window, 1)  # all that a window needs; a long prompt has left more
        if self.keys.shape[1] > roomy >= max(self.length, default=0):
            self.keys, self.values = self.keys[:, :roomy].clone(), self.values[:, :roomy].clone()

    @property
    def allocated_bytes(self) -> int:
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()

    def _reserve(self, needed: int, like: Tensor) -> None:
        capacity = 0 if self.keys is None else self.keys.shape[1]
        if needed <= capacity and self.keys is not None:
            return
        # A prompt is stored as it comes; growth after it doubles, but never beyond what a window can hold.
        grown = needed if capacity == 0 else max(needed, 2 * capacity)
        if self.window is not None:
            grown = max(needed, min(grown, 2 * self.window))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.zeros(len(self.length), grown, *like.shape[1:], dtype=like.dtype, device=like.device)
            if old is not None:
                new[:, :capacity] = old
            setattr(self, name, new)


class OneCallKVCache(_Ragged):
    """For a single call without a past: keys and values stay packed as they were computed."""

    def __init__(self) -> None:
        self.offsets: list[int] = [0]
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, places: Places, keys: Tensor, values: Tensor) -> None:
        """places[i] of the entries are those of sequence i."""
        assert self.keys is None, "this cache takes one call"
        assert not isinstance(places, Tensor), "this cache takes counts"
        self.keys, self.values = keys, values
        for count in places:
            self.offsets.append(self.offsets[-1] + count)

    def view(self, sequence: int) -> _Entries:
        assert self.keys is not None
        assert self.values is not None
        place = slice(self.offsets[sequence], self.offsets[sequence + 1])
        return _Entries(self.keys[place], self.values[place], 0)


class StaticKVCache(LayerCache):
    """Keys and values [batch, slots, kv_heads, hd] that never move: what a CUDA graph can write to.

    Args:
        like: gives dtype and device.
    """

    def __init__(self, batch: int, slots: int, heads: int, head_size: int, like: Tensor) -> None:
        # Zeros: what is masked must still be finite.
        self.keys, self.values = (like.new_zeros(batch, slots, heads, head_size) for _ in range(2))
        self.rows = torch.arange(batch, device=like.device)

    def take_over(self, cache: KVCache, ring: int) -> None:
        """Move the newest `ring` entries of every sequence here, entry i to slot i % ring, and empty the cache."""
        if cache.keys is None or cache.values is None:
            return
        for i, (first, length) in enumerate(zip(cache.first, cache.length, strict=True)):
            kept = min(length, ring)
            slots = torch.arange(first + length - kept, first + length, device=self.rows.device) % ring  # [kept]
            self.keys[i, slots] = cache.keys[i, length - kept : length]
            self.values[i, slots] = cache.values[i, length - kept : length]
        cache.keys = cache.values = None

    def append(self, places: Places, keys: Tensor, values: Tensor) -> None:
        """Entries [batch * e, kv_heads, hd], e of each sequence, go to slots `places` [batch * e]."""
        assert isinstance(places, Tensor), "slots have numbers"
        each = len(places) // len(self.rows)
        rows = self.rows if each == 1 else self.rows.repeat_interleave(each)
        self.keys[rows, places] = keys
        self.values[rows, places] = values

    def attend(self, q: Tensor, visible: Visible) -> Tensor:
        assert isinstance(visible, SlotMask), "slots are read through a mask"
        return attention(q[:, None], self.keys, self.values, visible.mask[:, None])[:, 0]

    @property
    def allocated_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


@dataclass
class TokenWindow:
    """Positions of one sequence's newest tokens in a local attention: the last `window` that ran through it.

    Under `text_path: direct` some tokens skip the local modules, so positions have gaps.
    """

    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: int = 0

    def extend(self, new: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of the interval of entries that each new position sees: itself and `window` - 1 before."""
        positions = np.concatenate([self.positions, new])  # [kept + new], increasing
        start = np.searchsorted(positions, new - window + 1) + self.dropped  # [new], first entry within the window
        end = np.arange(len(self.positions), len(positions)) + self.dropped + 1  # [new], itself included
        extra = max(0, len(positions) - window)  # entries that no later token sees
        self.positions, self.dropped = positions[extra:], self.dropped + extra
        return start, end


class Cache:
    """Everything that a batch of sequences remembers between calls.

    Args:
        one_call: there is no next call: nothing is copied, nothing grows.

    Attributes:
        encoder, global_layers, decoder: a cache for each layer's self-attention.
        cross: for each decoder layer's cross-attention, over the newest W_u units.
        encoder_window, decoder_window: of each sequence.
        open_patch: encoder states [tokens, d_l] of the patch that is still open, of each sequence; None: no token.
        tokens, units: seen and closed so far, of each sequence. A unit goes through the global transformer as it
            closes, once.
    """

    def __init__(self, config: ModelConfig, batch: int, one_call: bool = False) -> None:
        def layers(count: int, window: int | None) -> list[LayerCache]:
            return [OneCallKVCache() if one_call else KVCache(batch, window) for _ in range(count)]

        lst = config.kind == "lst"
        self.encoder = layers(config.encoder_layers if lst else 0, config.window)
        self.global_layers = layers(config.layers, None)
        self.decoder = layers(config.decoder_layers if lst else 0, config.window)
        self.cross = layers(config.decoder_layers if lst else 0, config.decoder_window_units * config.queries)
        self.encoder_window = [TokenWindow() for _ in range(batch)]
        self.decoder_window = [TokenWindow() for _ in range(batch)]
        self.open_patch: list[Tensor | None] = [None] * batch
        self.tokens, self.units = [0] * batch, [0] * batch

    def allocated_bytes(self) -> dict[str, int]:
        """Bytes held for each module."""
        groups = {"encoder": self.encoder, "global": self.global_layers, "decoder": self.decoder, "cross": self.cross}
        return {name: sum(cache.allocated_bytes for cache in caches) for name, caches in groups.items()}
