"""LatentSpeechTextModel: the exported model, for inference. Advances a batch of sequences, or scores packed rows.

A sequence is one document; attention never leaves it.  All sequences of a call lie end to end on one packed axis, so
prompts of different lengths need no padding.  The next call goes on from the `Cache`; the global transformer runs once
for each unit that closes (SPEC 9).

    b sequences, n new tokens, m newly closed units, k queries a unit, d_l and d_g local and global width
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear as matrix_product

from megatron_lst.config.schema import ModelConfig, RopeScalingConfig
from megatron_lst.errors import UserError
from megatron_lst.inference.cache import Cache, Intervals, TokenWindow
from megatron_lst.inference.inputs import PatchCounter, SequenceInput, inputs_of
from megatron_lst.inference.layers import (
    GlobalTransformer,
    PatchDecoder,
    PatchEncoder,
    Positions,
    Rope,
    linear,
    rope_at,
)
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.vocabulary import IGNORE, Vocabulary
from megatron_lst.weights import check_weights


class Outputs:
    """Final hidden states of the new tokens; logits are computed for those that are asked for.

    The vocabulary is large: logits of a whole row would take gigabytes.

    Args:
        count: n.
        groups: for each head: the tokens [a] whose successor it predicts, their hidden states [a, d], the head.
    """

    def __init__(self, count: int, groups: list[tuple[np.ndarray, Tensor, nn.Linear]]) -> None:
        self.count, self.groups = count, groups

    @torch.inference_mode()
    def logits(self, at: np.ndarray, ids: Tensor | None = None) -> Tensor:
        """[len(at), V] of the packed token positions `at` (increasing); of `ids` [A] alone, [len(at), A]."""
        _, hidden, head = self.groups[0]
        result = hidden.new_empty(len(at), head.out_features if ids is None else len(ids))
        for index, hidden, head in self.groups:
            _, here, there = np.intersect1d(at, index, assume_unique=True, return_indices=True)  # places in both
            if len(here):
                weight = head.weight if ids is None else head.weight[ids]
                rows = matrix_product(hidden[torch.from_numpy(there).to(hidden.device)], weight)
                result[torch.from_numpy(here).to(hidden.device)] = rows
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
        if patch_size > 1 and patch_size % vocabulary.depth:
            raise UserError(f"patch_size={patch_size}: a frame is {vocabulary.depth} tokens; expected a multiple of it")
        self.config, self.vocabulary, self.patch_size = config, vocabulary, patch_size
        size, eps = vocabulary.padded_size, config.norm_eps
        self.global_transformer = GlobalTransformer(config)
        if config.kind == "baseline":
            self.embedding = nn.Embedding(size, config.hidden)
            self.norm = nn.RMSNorm(config.hidden, eps)
            self.head = linear(config.hidden, size)
            return
        self.embedding = nn.Embedding(size, config.local_hidden)
        self.encoder = PatchEncoder(config)
        self.decoder = PatchDecoder(config, size)
        if config.text_path == "direct":
            self.text_embedding = nn.Embedding(size, config.hidden)
            self.text_norm = nn.RMSNorm(config.hidden, eps)
            self.text_head = linear(config.hidden, size)

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
        check_weights(weights, {name: tuple(weight.shape) for name, weight in model.state_dict().items()})
        model.load_state_dict(dict(weights), strict=True, assign=True)
        return model.requires_grad_(False).eval()

    def counters(self, batch: int) -> list[PatchCounter]:
        return [PatchCounter(self.vocabulary, self.patch_size) for _ in range(batch)]

    @torch.inference_mode()
    def advance(self, inputs: Sequence[SequenceInput], cache: Cache) -> Outputs:
        """Add tokens to each sequence; an input may be empty.

        Returns:
            Outputs of the new tokens, packed in the order of the sequences.

        Raises:
            UserError: a baseline is given patches of more than one token.
        """
        tokens = self._tensor(np.concatenate([new.tokens for new in inputs]))
        if self.config.kind == "baseline":
            if any((new.lengths != 1).any() for new in inputs):
                raise UserError("a baseline takes units of one token (patching.strategy none or bpe)")
            g = self._global_states(self.embedding(tokens), inputs, cache)
            groups = [(np.arange(len(tokens)), self.norm(g), self.head)]
        else:
            h = self._token_states(tokens, inputs, cache)
            e = self._patch_embeddings(h, inputs, cache)
            g = self._global_states(e, inputs, cache)
            groups = self._decoder_outputs(tokens, h, g, inputs, cache)
        for i, new in enumerate(inputs):
            cache.tokens[i] += len(new.tokens)
            cache.units[i] += len(new.lengths)
        return Outputs(len(tokens), groups)

    def _token_states(self, tokens: Tensor, inputs: Sequence[SequenceInput], cache: Cache) -> Tensor:
        """Encoder states H [n, d_l]; with `text_path: direct` of speech tokens alone, text keeps its embedding."""
        embedded = self.embedding(tokens)
        direct = self.config.text_path == "direct"
        encoded = [
            self.vocabulary.is_speech(new.tokens) if direct else np.ones(len(new.tokens), bool) for new in inputs
        ]
        among = np.concatenate(encoded)  # bool [n]
        at = self._local_positions(encoded, cache.tokens, cache.encoder_window)
        if not among.any():
            return embedded
        index = self._tensor(np.flatnonzero(among))
        return embedded.index_copy(0, index, self.encoder.states(embedded[index], at, cache.encoder))

    def _patch_embeddings(self, h: Tensor, inputs: Sequence[SequenceInput], cache: Cache) -> Tensor:
        """E [m, d_g] of the units that close; the cache keeps the tokens of patches that stay open."""
        states: list[Tensor] = []
        for i, (new, mine) in enumerate(zip(inputs, h.split([len(new.tokens) for new in inputs]), strict=True)):
            held = cache.open_patch[i]
            if held is not None:
                mine = torch.cat([held, mine])  # tokens of earlier calls come first
            used = int(new.lengths.sum())  # tokens of units that close
            states.append(mine[:used])
            cache.open_patch[i] = mine[used:].clone() if used < len(mine) else None
        lengths = np.concatenate([new.lengths for new in inputs])
        if not len(lengths):
            return h.new_empty(0, self.config.hidden)
        members = torch.cat(states)  # [sum(lengths), d_l]
        if self.config.text_path == "patch":
            return self.encoder.patches(members, lengths)
        first = np.concatenate([new.first_token for new in inputs])
        speech = self.vocabulary.is_speech(first)
        e = self.text_embedding(self._tensor(first))
        if speech.any():
            inside = self._tensor(np.flatnonzero(np.repeat(speech, lengths)))  # tokens of patches of speech
            patches = self.encoder.patches(members[inside], lengths[speech])
            e = e.index_copy(0, self._tensor(np.flatnonzero(speech)), patches)
        return e

    def _global_states(self, e: Tensor, inputs: Sequence[SequenceInput], cache: Cache) -> Tensor:
        """G [m, d_g] of the units that close."""
        if not len(e):
            return e
        index = _unit_index(inputs, cache)
        visible = Intervals([len(new.lengths) for new in inputs], np.zeros_like(index), index + 1)
        return self.global_transformer(
            e, Positions(self.global_rope(self._tensor(index)), visible), cache.global_layers
        )

    def _decoder_outputs(
        self, tokens: Tensor, h: Tensor, g: Tensor, inputs: Sequence[SequenceInput], cache: Cache
    ) -> list[tuple[np.ndarray, Tensor, nn.Linear]]:
        """What `Outputs` takes: of the decoder's head, and under `text_path: direct` of the text head."""
        config, k, marker = self.config, self.config.queries, self.vocabulary.speech_marker
        rope = self.local_rope if config.cross_rope else lambda position: None
        if len(g):
            units = self._tensor(np.repeat(_unit_index(inputs, cache), k))
            self.decoder.append_units(g, rope(units), [len(new.lengths) * k for new in inputs], cache.cross)
        direct = config.text_path == "direct"
        spoken = [
            self.vocabulary.is_speech(new.tokens) | (new.tokens == marker) if direct else np.ones(len(new.tokens), bool)
            for new in inputs
        ]
        chosen = np.concatenate(spoken)
        groups = []
        if chosen.any():
            x = self.decoder.embedding(tokens) if config.decoder_input == "embedding" else h
            closed = [new.closed[mine] for new, mine in zip(inputs, spoken, strict=True)]
            newest = np.concatenate(closed)  # [chosen], c(t)
            oldest = np.maximum(0, newest - config.decoder_window_units + 1)
            visible = Intervals([len(c) for c in closed], oldest * k, (newest + 1) * k)  # k keys a unit
            x = self.decoder.states(
                x[self._tensor(np.flatnonzero(chosen))],
                self._local_positions(spoken, cache.tokens, cache.decoder_window),
                Positions(rope(self._tensor(newest)), visible),
                cache.decoder,
                cache.cross,
            )
            groups.append((np.flatnonzero(chosen), x, self.decoder.head))
        if not chosen.all():
            before = np.cumsum([0, *(len(new.lengths) for new in inputs)])[:-1]  # rows of g of earlier sequences
            unit = np.concatenate(
                [new.unit - closed + rows for new, closed, rows in zip(inputs, cache.units, before, strict=True)]
            )
            groups.append((np.flatnonzero(~chosen), self.text_norm(g[self._tensor(unit[~chosen])]), self.text_head))
        return groups

    def _local_positions(
        self, chosen: Sequence[np.ndarray], begin: Sequence[int], windows: Sequence[TokenWindow]
    ) -> Positions:
        """Of the new tokens that `chosen` (bool, of each sequence) sends through a local module.

        Args:
            begin: the position of each sequence's first new token.
        """
        new = [np.flatnonzero(mine) + first for mine, first in zip(chosen, begin, strict=True)]
        seen = [window.extend(p, self.config.window) for window, p in zip(windows, new, strict=True)]
        start, end = (np.concatenate(side) for side in zip(*seen, strict=True))
        return Positions(
            self.local_rope(self._tensor(np.concatenate(new))), Intervals([len(p) for p in new], start, end)
        )

    def local_rope(self, position: Tensor) -> Rope:
        """RoPE of encoder and decoder at `position` [n]."""
        return self._rope(position, self.config.local_hidden // self.config.local_heads)

    def global_rope(self, unit: Tensor) -> Rope:
        """RoPE of the global transformer at `unit` [m]."""
        return self._rope(unit, self.config.global_head_size, self.config.rope_scaling)

    def _rope(self, position: Tensor, head_size: int, scaling: RopeScalingConfig | None = None) -> Rope:
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        return rope_at(position, head_size, self.config.rope_theta, dtype, scaling)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

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
            labels = np.concatenate([rows[r].labels[place] for r, place, _ in pending]).astype(np.int64)  # [n]
            wanted = np.flatnonzero(labels != IGNORE)
            scores = np.zeros(len(labels), np.float32)
            for begin in range(0, len(wanted), head_rows):
                at = wanted[begin : begin + head_rows]
                logits = outputs.logits(at)
                logits = logits.float() if logits.dtype != torch.float64 else logits
                target = self._tensor(labels[at])
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
        tokens = self._tensor(new.tokens)
        h = self._token_states(tokens, [new], cache)
        return self._patch_embeddings(h, [new], cache).float().cpu().numpy()

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


def _unit_index(inputs: Sequence[SequenceInput], cache: Cache) -> np.ndarray:
    """int64 [m]: the number of each newly closed unit in its sequence."""
    return np.concatenate(
        [np.arange(len(new.lengths)) + closed for new, closed in zip(inputs, cache.units, strict=True)]
    )
