"""Decoding in fixed shapes: the same buffers and operators at every token, so that a GPU can replay them (SPEC 9).

Ragged decoding (`LatentSpeechTextModel.advance`) launches about a thousand small kernels a token, and a GPU finishes
each of them faster than the host launches the next.  Here a step is three functions without arguments, each captured
once as a CUDA graph: `encode` takes a token of every sequence, `close` runs a unit through the global transformer,
`read` gives logits.  The host decides which of them run, and for whom; a sequence that has nothing to do writes into a
spare slot that nobody else reads.

    b sequences, p tokens a patch, k queries a unit
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from megatron_lst.inference.cache import Cache, KVCache, LayerCache, SlotMask, StaticKVCache, TokenWindow
from megatron_lst.inference.inputs import PatchCounter, SequenceInput
from megatron_lst.inference.layers import Positions
from megatron_lst.inference.model import LatentSpeechTextModel

_NEVER = -(1 << 60)
"""Position of a slot that holds nothing."""


class FixedDecoder:
    """Goes on from where `cache` is, one token a sequence at a time, and takes its caches over.

    Args:
        counters: of the sequences, having seen what `cache` has.
        room: units that each sequence may still get.
        wanted: ids [A] whose logits are given; None: all.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: LatentSpeechTextModel,
        cache: Cache,
        counters: Sequence[PatchCounter],
        room: int,
        wanted: Tensor | None = None,
    ) -> None:
        config, device, b = model.config, model.device, len(counters)
        like = model.embedding.weight
        self.model, self.cache = model, cache
        self.lst = config.kind == "lst"
        self.direct = self.lst and config.text_path == "direct"
        # Of each sequence: token, whether there is one, whether it first closes a shorter patch, whether it closes one.
        self._inputs = torch.zeros(4, b, dtype=torch.int64, device=device)
        self._closing = torch.zeros(b, dtype=torch.bool, device=device)
        vocabulary = model.vocabulary
        self.is_speech = torch.from_numpy(vocabulary.is_speech(np.arange(vocabulary.padded_size))).to(device)
        self.position, self.units = (torch.tensor(n, device=device) for n in (cache.tokens, cache.units))

        tables = [model.decoder.head if self.lst else model.head, *([model.text_head] if self.direct else [])]
        self.heads = [table.weight if wanted is None else table.weight[wanted] for table in tables]
        self.logits = like.new_zeros(b, len(self.heads[0]))
        self.g = like.new_zeros(b, config.hidden)
        self.capacity = -(-(max(cache.units) + room) // 8) * 8  # slots of units, a multiple of 8
        size = config.global_head_size
        self.global_layers = _slots(cache.global_layers, b, self.capacity, 1, config.global_kv_heads, size, like)
        if self.lst:
            heads, size = config.local_heads, config.local_hidden // config.local_heads
            self.cross_slots = config.decoder_window_units * config.queries
            self.cross = _slots(cache.cross, b, self.cross_slots, config.queries, heads, size, like)
            self.encoder, self.decoder = (
                _Window(windows, _slots(caches, b, config.window, 1, heads, size, like))
                for windows, caches in ((cache.encoder_window, cache.encoder), (cache.decoder_window, cache.decoder))
            )
            self._take_open_patches(counters)
        self._encode, self._close, self._read = (_replayed(f, device) for f in (self.encode, self.close, self.read))

    def _take_open_patches(self, counters: Sequence[PatchCounter]) -> None:
        device, like = self.model.device, self.model.embedding.weight
        self.rows = torch.arange(len(counters), device=device)
        self.h = like.new_zeros(len(counters), self.model.config.local_hidden)
        self.open_patch = like.new_zeros(len(counters), self.model.patch_size + 1, self.model.config.local_hidden)
        self.open_count = torch.tensor([len(counter.open) for counter in counters], device=device)
        self.first_token = torch.tensor([(counter.open or [0])[0] for counter in counters], device=device)
        for row, held in zip(self.open_patch, self.cache.open_patch, strict=True):
            if held is not None:
                row[: len(held)] = held

    @torch.inference_mode()
    def advance(self, inputs: Sequence[SequenceInput]) -> Tensor:
        """One token of each sequence, or none.

        Returns:
            Logits [b, V], or [b, A] of the wanted ids; rows without a token mean nothing. The next call overwrites it.
        """
        assert all(len(new.tokens) <= 1 for new in inputs), "fixed shapes take one token a sequence"
        units = [len(new.lengths) for new in inputs]
        most = max(have + new for have, new in zip(self.cache.units, units, strict=True))
        assert most <= self.capacity, f"room for {self.capacity} units, not for {most}"
        tokens = [int(new.tokens[0]) if len(new.tokens) else 0 for new in inputs]
        # Two units close where a token that is not speech first ends the patch that was open.
        late, closes = [n > 1 for n in units], [n > 0 for n in units]
        # A new tensor each time: the host may come here again before the device has read the one before, and PyTorch
        # gives pinned memory away again only when it has.
        plan = torch.tensor(
            [tokens, [len(new.tokens) for new in inputs], late, closes],
            dtype=torch.int64,
            pin_memory=self._inputs.is_cuda,
        )
        self._inputs.copy_(plan, non_blocking=True)
        if any(late):
            self._closing.copy_(self._inputs[2])
            self._close()
        if self.lst:
            self._encode()
        if any(closes):
            self._closing.copy_(self._inputs[3])
            self._close()
        self._read()
        for i, (new, closed) in enumerate(zip(inputs, units, strict=True)):
            self.cache.tokens[i] += len(new.tokens)
            self.cache.units[i] += closed
        return self.logits

    @property
    def active(self) -> Tensor:
        """bool [b]: who has a token in this step."""
        return self._inputs[1].bool()

    def encode(self) -> None:
        """Encoder states of the tokens, kept with the patches that are open."""
        tokens, active, model = self._inputs[0], self.active, self.model
        runs = active & self.is_speech[tokens] if self.direct else active
        x = model.embedding(tokens)
        at = Positions(model.local_rope(self.position), self.encoder.add(self.position, runs))
        h = model.encoder.states(x, at, self.encoder.caches)
        self.h.copy_(torch.where(runs[:, None], h, x) if self.direct else h)
        self.first_token.copy_(torch.where(self.open_count == 0, tokens, self.first_token))
        self.open_patch[self.rows, torch.where(active, self.open_count, model.patch_size)] = self.h
        self.open_count += active

    def close(self) -> None:
        """The open patches of those that close a unit: global transformer, keys and values for the decoder."""
        model, closing = self.model, self._closing
        e = self._patches() if self.lst else model.embedding(self._inputs[0])
        # Whoever closes no unit writes where the next one will: it is overwritten before anyone sees it.
        mask = torch.arange(self.capacity + 1, device=closing.device) <= self.units[:, None]  # [b, slots]
        at = Positions(model.global_rope(self.units), SlotMask(self.units, mask))
        g = model.global_transformer(e, at, self.global_layers)
        self.g.copy_(torch.where(closing[:, None], g, self.g))
        if self.lst:
            k = model.config.queries
            first = torch.where(closing, self.units * k % self.cross_slots, self.cross_slots)
            slots = (first[:, None] + torch.arange(k, device=first.device)).flatten()  # [b * k]
            rope = model.local_rope(self.units.repeat_interleave(k)) if model.config.cross_rope else None
            model.decoder.append_units(g, rope, slots, self.cross)
            self.open_count.masked_fill_(closing, 0)
        self.units += closing

    def _patches(self) -> Tensor:
        """Embeddings [b, d_g] of the open patches; those of nobody who closes one mean nothing."""
        model, encoder = self.model, self.model.encoder
        inside = torch.arange(model.patch_size, device=self.open_patch.device) < self.open_count.clamp(min=1)[:, None]
        members = torch.where(inside[..., None], self.open_patch[:, :-1], self.open_patch[:, :1])
        k, v = encoder.cross_attention.keys_values(members)
        e = encoder.project(encoder.pool(members, k, v, inside))
        if self.direct:
            speech = self.is_speech[self.first_token]
            e = torch.where(speech[:, None], e, model.text_embedding(self.first_token))
        return e

    def read(self) -> None:
        """Logits after the tokens."""
        model, config, tokens, active = self.model, self.model.config, self._inputs[0], self.active
        if not self.lst:
            self.logits.copy_(linear(model.norm(self.g), self.heads[0]))
            return
        spoken = self.is_speech[tokens] | (tokens == model.vocabulary.speech_marker)
        runs = active & spoken if self.direct else active
        local = Positions(model.local_rope(self.position), self.decoder.add(self.position, runs))
        filled = (self.units * config.queries).clamp(max=self.cross_slots)  # [b], keys that are there
        mask = torch.arange(self.cross_slots + config.queries, device=filled.device) < filled[:, None]
        units = Positions(model.local_rope(self.units - 1) if config.cross_rope else None, SlotMask(None, mask))
        x = model.decoder.embedding(tokens) if config.decoder_input == "embedding" else self.h
        x = model.decoder.states(x, local, units, self.decoder.caches, self.cross)
        logits = linear(x, self.heads[0])
        if self.direct:
            text = linear(model.text_norm(self.g), self.heads[1])
            logits = torch.where(spoken[:, None], logits, text)
        self.logits.copy_(logits)
        self.position += active

    def allocated_bytes(self) -> dict[str, int]:
        """Bytes held for each module."""
        groups = {"encoder": [], "global": self.global_layers, "decoder": [], "cross": []}
        if self.lst:
            groups |= {"encoder": self.encoder.caches, "decoder": self.decoder.caches, "cross": self.cross}
        return {name: sum(cache.allocated_bytes for cache in caches) for name, caches in groups.items()}


class _Window:
    """The newest entries of a local attention, all layers: where they stand, and where the next one goes."""

    def __init__(self, windows: Sequence[TokenWindow], caches: list[StaticKVCache]) -> None:
        rows = caches[0].rows
        self.caches, self.rows, self.size = caches, rows, caches[0].keys.shape[1] - 1
        count = [window.dropped + len(window.positions) for window in windows]  # entries that each sequence ever had
        positions = np.full((len(windows), self.size + 1), _NEVER)
        for row, window, n in zip(positions, windows, count, strict=True):
            row[np.arange(window.dropped, n) % self.size] = window.positions
        self.count, self.positions = (
            torch.tensor(count, device=rows.device),
            torch.from_numpy(positions).to(rows.device),
        )

    def add(self, position: Tensor, runs: Tensor) -> SlotMask:
        """An entry at `position` [b] for each sequence that `runs` [b]: where it goes, and what it sees."""
        slot = torch.where(runs, self.count % self.size, self.size)  # a ring; the last slot is the spare one
        self.positions[self.rows, slot] = torch.where(runs, position, _NEVER)
        self.count += runs
        mask = self.positions > position[:, None] - self.size  # [b, slots]: the newest `size` positions
        mask[:, -1] = ~runs  # whoever does nothing sees the spare slot: no softmax is empty
        return SlotMask(slot, mask)


def _slots(
    caches: Sequence[LayerCache], batch: int, size: int, spare: int, heads: int, head_size: int, like: Tensor
) -> list[StaticKVCache]:
    """Each cache's newest `size` entries, in slots; `spare` more for sequences that have nothing to write."""
    result = []
    for cache in caches:
        assert isinstance(cache, KVCache), "a cache of one call has no past to go on from"
        result.append(StaticKVCache(batch, size + spare, heads, head_size, like))
        result[-1].take_over(cache, size)
    return result


def _replayed(step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """On a GPU `step` as a CUDA graph, replayed at every call; elsewhere `step` itself.

    It runs twice before, with nobody active, so that kernels are loaded and workspaces allocated outside of the graph.
    """
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay
