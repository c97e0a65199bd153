"""Key/value stores of a batch of sequences that grow at different speeds.

A store keeps [batch, capacity, kv_heads, hd]; capacity doubles when it is full.  A windowed store drops what no later
query can see, so that local attention costs a constant amount of memory however long a sequence grows.  A
`StaticKVCache` never grows: its caller says which slot an entry takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Places = Sequence[int] | Tensor
"""Where new entries go: how many to each sequence, or for a `StaticKVCache` the slot of each."""


@dataclass(frozen=True)
class Keys:
    """The keys and values of one sequence: [m, kv_heads, hd] each; `first` is the index of entry 0."""

    keys: Tensor
    values: Tensor
    first: int


class KVCache:
    """Keys and values of one attention layer.

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

    def extend(self, counts: Places, keys: Tensor, values: Tensor) -> None:
        """Append packed entries [sum(counts), kv_heads, hd], counts[i] of them to sequence i."""
        assert not isinstance(counts, Tensor), "a growing store takes counts"
        needed = max((self.length[i] + count for i, count in enumerate(counts)), default=0)
        self._reserve(needed, keys)
        assert self.keys is not None
        assert self.values is not None
        if all(count == 1 for count in counts) and len(set(self.length)) == 1:
            self.keys[:, self.length[0]] = keys
            self.values[:, self.length[0]] = values
        else:
            offset = 0
            for i, count in enumerate(counts):
                if count:
                    place = slice(self.length[i], self.length[i] + count)
                    self.keys[i, place] = keys[offset : offset + count]
                    self.values[i, place] = values[offset : offset + count]
                    offset += count
        for i, count in enumerate(counts):
            self.length[i] += count

    def view(self, sequence: int) -> Keys:
        assert self.keys is not None
        assert self.values is not None
        length = self.length[sequence]
        return Keys(self.keys[sequence, :length], self.values[sequence, :length], self.first[sequence])

    def padded(self, rows: list[int], low: int, high: int) -> tuple[Tensor, Tensor]:
        """Held entries [low, high) of some sequences, [len(rows), high - low, kv_heads, hd]; past an end: 0 or old."""
        assert self.keys is not None
        assert self.values is not None
        if len(rows) == len(self.length):
            return self.keys[:, low:high], self.values[:, low:high]
        index = torch.tensor(rows, device=self.keys.device)
        return self.keys[:, low:high][index], self.values[:, low:high][index]

    def trim(self) -> None:
        """Forget entries outside the window, where that frees at least as much as it moves."""
        if self.window is None or self.keys is None or self.values is None:
            return
        for i, length in enumerate(self.length):
            if length >= 2 * self.window:
                dropped = length - self.window
                for tensor in (self.keys, self.values):
                    tensor[i, : self.window] = tensor[i, dropped:length].clone()
                self.length[i] = self.window
                self.first[i] += dropped
        roomy = max(2 * self.window, 1)
        if self.keys.shape[1] > roomy >= max(self.length, default=0):
            self.keys, self.values = self.keys[:, :roomy].clone(), self.values[:, :roomy].clone()

    @property
    def entries(self) -> int:
        return sum(self.length)

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


class OneCallKVCache:
    """The same for a single call without a past: keys and values stay packed as they were computed."""

    def __init__(self) -> None:
        self.offsets: list[int] = [0]
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, counts: Places, keys: Tensor, values: Tensor) -> None:
        assert self.keys is None, "a cache of one call takes one call"
        assert not isinstance(counts, Tensor), "a cache of one call takes counts"
        self.keys, self.values = keys, values
        for count in counts:
            self.offsets.append(self.offsets[-1] + count)

    def view(self, sequence: int) -> Keys:
        assert self.keys is not None
        assert self.values is not None
        place = slice(self.offsets[sequence], self.offsets[sequence + 1])
        return Keys(self.keys[place], self.values[place], 0)

    def trim(self) -> None:
        pass


class StaticKVCache:
    """Keys and values [batch, slots, kv_heads, hd] that never move: what a CUDA graph can write to.

    Args:
        like: gives dtype and device.
    """

    def __init__(self, batch: int, slots: int, heads: int, head_size: int, like: Tensor) -> None:
        # Zeros: what is masked must still be finite.
        self.keys, self.values = (like.new_zeros(batch, slots, heads, head_size) for _ in range(2))
        self.rows = torch.arange(batch, device=like.device)

    def take_over(self, store: "KVCache", ring: int) -> None:
        """Move the newest `ring` entries of every sequence here, entry i to slot i % ring, and empty the store."""
        if store.keys is None or store.values is None:
            return
        for i, (first, length) in enumerate(zip(store.first, store.length, strict=True)):
            kept = min(length, ring)
            place = torch.arange(first + length - kept, first + length, device=self.rows.device) % ring
            self.keys[i, place] = store.keys[i, length - kept : length]
            self.values[i, place] = store.values[i, length - kept : length]
        store.keys = store.values = None

    def extend(self, slots: Places, keys: Tensor, values: Tensor) -> None:
        """Write entries [batch * n, kv_heads, hd], n of each sequence, to `slots` [batch * n]."""
        assert isinstance(slots, Tensor), "slots have numbers"
        each = len(slots) // len(self.rows)
        rows = self.rows if each == 1 else self.rows.repeat_interleave(each)
        self.keys[rows, slots] = keys
        self.values[rows, slots] = values

    def trim(self) -> None:
        pass

    @property
    def allocated_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


LayerCache = KVCache | OneCallKVCache | StaticKVCache
