"""LatentSpeechTextModel: the exported model, for inference. Advances a batch of sequences, or scores packed rows.

A sequence is one document; attention never leaves it.  All sequences of a call lie end to end on one packed axis, so
prompts of different lengths need no padding.  With a `Cache` every layer appends to its keys and values, and the
next call continues; the global transformer runs once for each unit that closes (SPEC 9).

    b sequences, n new tokens, m newly closed units, k queries a unit
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from megatron_lst.config.schema import ModelConfig
from megatron_lst.errors import UserError
from megatron_lst.inference.arithmetic import Batched, Intervals, Rotation, wide
from megatron_lst.inference.cache import KVCache, LayerCache, OneCallKVCache
from megatron_lst.inference.inputs import PatchCounter, SequenceInput, inputs_of
from megatron_lst.inference.modules import (
    Axis,
    Decoder,
    GlobalTransformer,
    Norm,
    PatchPooling,
    Projection,
    Table,
)
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.vocabulary import IGNORE, Vocabulary


@dataclass
class LocalAxis:
    """Where the entries of one sequence's local attention stand; the last `window` of them are remembered."""

    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: int = 0

    def extend(self, new: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of the interval of entries that each new position sees: itself and `window` - 1 before."""
        positions = np.concatenate([self.positions, new])
        start = np.searchsorted(positions, new - window + 1) + self.dropped
        end = np.arange(len(self.positions), len(positions)) + self.dropped + 1
        extra = max(0, len(positions) - window)
        self.positions, self.dropped = positions[extra:], self.dropped + extra
        return start, end


class Cache:
    """Everything that a batch of sequences remembers between calls.

    Attributes:
        encoder, global_layers, decoder: keys and values of each layer's self-attention.
        cross: those of each decoder layer's cross-attention, to the newest W_u units.
        tokens, units: seen and closed so far, of each sequence.
        global_steps: units that went through the global transformer, of each sequence.
    """

    def __init__(self, config: ModelConfig, batch: int, one_call: bool = False) -> None:
        def stores(layers: int, window: int | None) -> list[LayerCache]:
            return [OneCallKVCache() if one_call else KVCache(batch, window) for _ in range(layers)]

        lst = config.kind == "lst"
        self.encoder = stores(config.encoder_layers if lst else 0, config.window)
        self.global_layers = stores(config.layers, None)
        self.decoder = stores(config.decoder_layers if lst else 0, config.window)
        self.cross = stores(config.decoder_layers if lst else 0, config.decoder_window_units * config.queries)
        self.encoder_axis = [LocalAxis() for _ in range(batch)]
        self.decoder_axis = [LocalAxis() for _ in range(batch)]
        self.open: list[Tensor | None] = [None] * batch
        self.tokens, self.units, self.global_steps = [0] * batch, [0] * batch, [0] * batch

    def cache_bytes(self) -> dict[str, int]:
        """Bytes held by the caches of each module."""
        groups = {
            "encoder": self.encoder,
            "global": self.global_layers,
            "decoder": self.decoder,
            "cross": self.cross,
        }
        return {
            name: sum(store.allocated_bytes for store in stores if isinstance(store, KVCache))
            for name, stores in groups.items()
        }


class Outputs:
    """Final hidden states of the new tokens; logits are computed for those that are asked for.

    The vocabulary is large: logits of a whole row would take gigabytes.
    """

    def __init__(self, count: int, groups: list[tuple[np.ndarray, Tensor, Projection]], math: Batched) -> None:
        self.count, self.groups, self.math = count, groups, math

    @torch.inference_mode()
    def logits(self, at: np.ndarray, ids: Tensor | None = None) -> Tensor:
        """[len(at), V] of the packed token positions `at` (increasing); of `ids` [A] alone, [len(at), A]."""
        size = self.groups[0][2].weight.shape[0] if ids is None else len(ids)
        result = self.groups[0][1].new_empty(len(at), size)
        for index, hidden, head in self.groups:
            wanted, here, there = np.intersect1d(at, index, assume_unique=True, return_indices=True)
            if len(wanted):
                device = hidden.device
                weight = head.weight if ids is None else head.weight[ids]
                rows = self.math.linear(hidden[torch.from_numpy(there).to(device)], weight)
                result[torch.from_numpy(here).to(device)] = rows
        return result


class LatentSpeechTextModel(nn.Module):
    """An LST or a baseline for inference, under the canonical weight names.

    Args:
        config: as trained.
        vocabulary: as trained; `padded_size` is V.
        patch_size: p of static patching in generation; 1 for an unpatched model.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, patch_size: int = 4) -> None:
        super().__init__()
        if config.kind == "baseline" and patch_size != 1:
            raise UserError(f"patch_size={patch_size}: a baseline has patches of one token")
        self.config, self.vocabulary, self.patch_size = config, vocabulary, patch_size
        self.math = Batched()
        size, eps = vocabulary.padded_size, config.norm_eps
        self.global_transformer = GlobalTransformer(config)
        if config.kind == "baseline":
            self.embedding = Table(size, config.hidden)
            self.norm = Norm(config.hidden, eps)
            self.head = Projection(config.hidden, size)
            return
        self.embedding = Table(size, config.local_hidden)
        self.encoder = PatchPooling(config)
        self.decoder = Decoder(config, size)
        if config.text_path == "direct":
            self.text_embedding = Table(size, config.hidden)
            self.text_norm = Norm(config.hidden, eps)
            self.text_head = Projection(config.hidden, size)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @classmethod
    def from_weights(
        cls, config: ModelConfig, vocabulary: Vocabulary, weights: Mapping[str, Tensor], patch_size: int = 4
    ) -> "LatentSpeechTextModel":
        """A model that shares the given tensors (no copy), in their dtype.

        Raises:
            UserError: names or shapes differ; lists every one.
        """
        with torch.device("meta"):
            model = cls(config, vocabulary, patch_size)
        wanted = model.state_dict()
        wrong = [f"{n}: missing" for n in wanted if n not in weights]
        wrong += [f"{n}: not part of this model" for n in weights if n not in wanted]
        wrong += [
            f"{n}: shape {tuple(weights[n].shape)}, expected {tuple(t.shape)}"
            for n, t in wanted.items()
            if n in weights and weights[n].shape != t.shape
        ]
        if wrong:
            raise UserError("the weights do not fit the configuration:\n  " + "\n  ".join(sorted(wrong)))
        model.load_state_dict(dict(weights), strict=True, assign=True)
        return model.requires_grad_(False).eval()

    def counters(self, batch: int) -> list[PatchCounter]:
        return [PatchCounter(self.vocabulary, self.patch_size) for _ in range(batch)]

    @torch.inference_mode()
    def advance(self, inputs: Sequence[SequenceInput], cache: Cache) -> Outputs:
        """Add tokens to each sequence; one may be empty.

        Returns:
            Outputs of the new tokens, packed in the order of the sequences.
        """
        if self.config.kind == "baseline":
            return self._advance_baseline(inputs, cache)
        math, config = self.math, self.config
        tokens = self._here(np.concatenate([p.tokens for p in inputs]))
        local = [np.arange(len(p.tokens)) + cache.tokens[i] for i, p in enumerate(inputs)]
        everything = [np.ones(len(p.tokens), bool) for p in inputs]
        direct = config.text_path == "direct"
        h = self._token_states(tokens, local, inputs, cache)
        e = self._unit_embeddings(h, inputs, cache)
        g = e
        if len(e):
            g = self._global(e, inputs, cache)
            self._push(g, inputs, cache)

        spoken = everything
        if direct:
            marker = self.vocabulary.speech_marker
            spoken = [self.vocabulary.is_speech(p.tokens) | (p.tokens == marker) for p in inputs]
        outputs: list[tuple[np.ndarray, Tensor, Projection]] = []
        chosen = np.concatenate(spoken)
        if chosen.any():
            at = self._here(np.flatnonzero(chosen))
            x = (self.decoder.embedding(tokens) if config.decoder_input == "embedding" else h)[at]
            axis = self._local_axis(local, spoken, cache.decoder_axis)
            x = self._decode(x, axis, [p.closed[s] for p, s in zip(inputs, spoken, strict=True)], cache)
            outputs.append((np.flatnonzero(chosen), x, self.decoder.head))
        if direct and not chosen.all():
            offsets = np.cumsum([0, *(len(p.lengths) for p in inputs)])
            unit = np.concatenate([p.unit - cache.units[i] + offsets[i] for i, p in enumerate(inputs)])
            written = g[self._here(unit[~chosen])]
            outputs.append((np.flatnonzero(~chosen), self.text_norm(written, math), self.text_head))
        for i, new in enumerate(inputs):
            cache.tokens[i] += len(new.tokens)
            cache.units[i] += len(new.lengths)
        return Outputs(len(tokens), outputs, math)

    def _advance_baseline(self, inputs: Sequence[SequenceInput], cache: Cache) -> Outputs:
        if any((p.lengths != 1).any() for p in inputs):
            raise UserError("a baseline takes units of one token (patching.strategy none or bpe)")
        tokens = self._here(np.concatenate([p.tokens for p in inputs]))
        g = self._global(self.embedding(tokens), inputs, cache)
        for i, new in enumerate(inputs):
            cache.tokens[i] += len(new.tokens)
            cache.units[i] += len(new.lengths)
        return Outputs(len(tokens), [(np.arange(len(tokens)), self.norm(g, self.math), self.head)], self.math)

    def _local_axis(self, positions: list[np.ndarray], chosen: list[np.ndarray], memory: list[LocalAxis]) -> Axis:
        new = [p[c] for p, c in zip(positions, chosen, strict=True)]
        seen = [memory[i].extend(p, self.config.window) for i, p in enumerate(new)]
        queries = Intervals(
            [len(p) for p in new], np.concatenate([s for s, _ in seen]), np.concatenate([e for _, e in seen])
        )
        return Axis(queries, self.local_rotation(self._here(np.concatenate(new))))

    def _here(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def local_rotation(self, position: Tensor) -> Rotation:
        """RoPE of encoder and decoder at `position` [n]."""
        return self._rotation(position, self.config.local_hidden // self.config.local_heads)

    def global_rotation(self, unit: Tensor) -> Rotation:
        """RoPE of the global transformer at `unit` [m]."""
        return self._rotation(unit, self.config.hidden // self.config.heads)

    def _rotation(self, position: Tensor, head_size: int) -> Rotation:
        return self.math.rotation(position, head_size, self.config.rope_theta, wide(self.embedding.weight[:0]).dtype)

    def _token_states(
        self, tokens: Tensor, local: list[np.ndarray], inputs: Sequence[SequenceInput], cache: Cache
    ) -> Tensor:
        """Encoder states H [n, d_l]; with `text_path: direct` of speech tokens alone, text keeps its embedding."""
        embedded = self.embedding(tokens)
        direct = self.config.text_path == "direct"
        encoded = [self.vocabulary.is_speech(p.tokens) if direct else np.ones(len(p.tokens), bool) for p in inputs]
        axis = self._local_axis(local, encoded, cache.encoder_axis)
        among = np.concatenate(encoded)
        if not among.any():
            return embedded
        at = self._here(np.flatnonzero(among))
        return embedded.index_copy(0, at, self.encoder.states(embedded[at], axis, cache.encoder, self.math))

    def _unit_embeddings(self, h: Tensor, inputs: Sequence[SequenceInput], cache: Cache) -> Tensor:
        """E [m, d_g] of the units that close; tokens of patches that stay open are kept in the cache."""
        pieces: list[Tensor] = []
        offset = 0
        for i, new in enumerate(inputs):
            mine = h[offset : offset + len(new.tokens)]
            offset += len(new.tokens)
            held = cache.open[i]
            if held is not None:
                mine = torch.cat([held, mine])
            used = int(new.lengths.sum())
            pieces.append(mine[:used])
            cache.open[i] = mine[used:].clone() if used < len(mine) else None
        lengths = np.concatenate([p.lengths for p in inputs])
        if not len(lengths):
            return h.new_empty(0, self.config.hidden)
        first = np.concatenate([p.first_token for p in inputs])
        states = torch.cat(pieces)
        if self.config.text_path == "patch":
            return self.encoder.patches(states, lengths, self.math)
        speech = self.vocabulary.is_speech(first)
        e = self.text_embedding(self._here(first))
        if speech.any():
            inside = self._here(np.flatnonzero(np.repeat(speech, lengths)))
            patches = self.encoder.patches(states[inside], lengths[speech], self.math)
            e = e.index_copy(0, self._here(np.flatnonzero(speech)), patches)
        return e

    def _global(self, e: Tensor, inputs: Sequence[SequenceInput], cache: Cache) -> Tensor:
        counts = [len(p.lengths) for p in inputs]
        index = np.concatenate([np.arange(count) + cache.units[i] for i, count in enumerate(counts)])
        for i, count in enumerate(counts):
            cache.global_steps[i] += count
        axis = Axis(Intervals(counts, np.zeros_like(index), index + 1), self.global_rotation(self._here(index)))
        return self.global_transformer(e, axis, cache.global_layers, self.math)

    def _push(self, g: Tensor, inputs: Sequence[SequenceInput], cache: Cache) -> None:
        k = self.config.queries
        turn = None
        if self.config.cross_rope:
            index = np.concatenate([np.arange(len(p.lengths)) + cache.units[i] for i, p in enumerate(inputs)])
            turn = self.local_rotation(self._here(np.repeat(index, k)))
        self.decoder.push(g, turn, [len(p.lengths) * k for p in inputs], cache.cross, self.math)

    def _decode(self, x: Tensor, local: Axis, closed: list[np.ndarray], cache: Cache) -> Tensor:
        k, window = self.config.queries, self.config.decoder_window_units
        newest = np.concatenate(closed)
        queries = Intervals([len(c) for c in closed], np.maximum(0, newest - window + 1) * k, (newest + 1) * k)
        over_units = Axis(queries, self.local_rotation(self._here(newest)) if self.config.cross_rope else None)
        return self.decoder.states(x, local, over_units, cache.cross, cache.decoder, self.math)

    @torch.inference_mode()
    def score(self, rows: Sequence[Row], tokens_at_once: int = 16384, head_rows: int = 2048) -> list[np.ndarray]:
        """log p(label) of every token of packed rows, maps as given (any strategy).

        Args:
            tokens_at_once: rows are taken together up to this many tokens.
            head_rows: logits computed at a time.

        Returns:
            float32 [N] for each row, nats; 0 where the label is IGNORE.
        """
        result = [np.zeros(len(row.tokens), np.float32) for row in rows]
        pending: list[tuple[int, slice, SequenceInput]] = []

        def flush() -> None:
            if not pending:
                return
            outputs = self.advance([p for _, _, p in pending], Cache(self.config, len(pending), one_call=True))
            labels = np.concatenate([rows[r].labels[place] for r, place, _ in pending]).astype(np.int64)
            wanted = np.flatnonzero(labels != IGNORE)
            scores = np.zeros(len(labels), np.float32)
            for begin in range(0, len(wanted), head_rows):
                at = wanted[begin : begin + head_rows]
                logits = outputs.logits(at)
                logits = logits.float() if logits.dtype != torch.float64 else logits
                target = self._here(labels[at])
                chosen = logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)
                scores[at] = chosen.float().cpu().numpy()
            offset = 0
            for r, place, new in pending:
                result[r][place] = scores[offset : offset + len(new.tokens)]
                offset += len(new.tokens)
            pending.clear()

        held = 0
        for r, row in enumerate(rows):
            for place, new in inputs_of(row, self.vocabulary.pad):
                if held + len(new.tokens) > tokens_at_once:
                    flush()
                    held = 0
                pending.append((r, place, new))
                held += len(new.tokens)
        flush()
        return result

    @torch.inference_mode()
    def patch_embeddings(self, chunk: Chunk) -> np.ndarray:
        """E of every unit of one document, float32 [U, d_g]: what enters the global transformer (SPEC 2.6)."""
        row = assemble_row([chunk], len(chunk.patch_length), self.vocabulary)
        ((_, new),) = inputs_of(row, self.vocabulary.pad)
        cache = Cache(self.config, 1, one_call=True)
        tokens = self._here(new.tokens)
        h = self._token_states(tokens, [np.arange(len(new.tokens))], [new], cache)
        return self._unit_embeddings(h, [new], cache).float().cpu().numpy()

    @torch.inference_mode()
    def row_logits(self, row: Row) -> Tensor:
        """Logits [N, V] of a row, zero on padding: for comparisons, not for large vocabularies."""
        result = torch.zeros(
            len(row.tokens), self.vocabulary.padded_size, dtype=self.embedding.weight.dtype, device=self.device
        )
        for place, new in inputs_of(row, self.vocabulary.pad):
            outputs = self.advance([new], Cache(self.config, 1, one_call=True))
            result[place] = outputs.logits(np.arange(len(new.tokens)))
        return result
