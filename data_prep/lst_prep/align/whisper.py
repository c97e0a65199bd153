"""Alignment with Whisper, for the hundred languages that it knows: the transcript is forced through its decoder.

Where the decoder looks while it says a token tells when the token is said. The heads that do so stand in the
checkpoint's generation_config.json (`alignment_heads`). Punctuation tells where pauses are. This is the coarsest of the
aligners: docs/languages.md has its errors.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from lst_prep.align.spans import AlignedWords, Piece, attempt
from lst_prep.audio import RATE
from lst_prep.config import AlignConfig
from lst_prep.devices import choose_device, choose_dtype, model_fingerprint
from lst_prep.languages import base_language, is_unspaced
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError

_FRAMES = 50
"""A second, of the encoder."""
_LONGEST = 30.0
_SMOOTH = 7
"""Frames of the median filter over an attention row."""
_QUIET = 1e-3
"""Power, as a share of the loud frames': quieter frames at the edges of a word are not of it (30 dB)."""


class WhisperAligner:
    """One loaded model. A word's score is the mean log-probability of its tokens.

    Raises:
        UserError: no whole Whisper can be loaded from `align.model`, or it does not say which heads align.
    """

    def __init__(self, config: AlignConfig) -> None:
        import torch
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

        try:
            model = WhisperForConditionalGeneration.from_pretrained(
                config.model, attn_implementation="eager", dtype=torch.float32
            )
            self._tokenizer = WhisperTokenizerFast.from_pretrained(config.model)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"align.model {config.model!r}: cannot be loaded as a whole Whisper ({error})") from error
        options = model.generation_config
        self._heads: list[list[int]] = getattr(options, "alignment_heads", None) or []
        if not self._heads:
            raise UserError(
                f"align.model {config.model!r}: its generation_config.json has no alignment_heads, which say where it "
                f"looks while it speaks: take it from the published checkpoint"
            )
        self._languages: dict[str, int] | None = getattr(options, "lang_to_id", None)
        self._start, self._end = int(options.decoder_start_token_id), int(model.config.eos_token_id)
        self._task = (getattr(options, "task_to_id", None) or {}).get("transcribe")
        self._no_times = int(options.no_timestamps_token_id)
        self._most = int(model.config.max_target_positions)
        self._mel = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        digest = hashlib.sha256(f"whisper aligner 1 {model_fingerprint(model)} {self._heads}".encode()).hexdigest()
        self.fingerprint = f"whisper {digest[:16]}"
        self._device = choose_device(config.device)
        self._dtype = choose_dtype(config.precision, self._device)
        self._model = model.eval().to(self._device, self._dtype)
        self._batch = max(int(config.batch_seconds / _LONGEST), 1)
        self._torch = torch

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        """Each piece with its words or with why it has none."""
        results: list[AlignedWords | Rejection] = [Rejection("not_aligned")] * len(pieces)
        ready: list[tuple[int, list[int], list[list[int]]]] = []
        for index, piece in enumerate(pieces):
            try:
                ready.append((index, *self._tokens(piece)))
            except Rejection as rejection:
                results[index] = rejection
        for first in range(0, len(ready), self._batch):
            batch = ready[first : first + self._batch]
            found = self._run([pieces[i].samples for i, *_ in batch], [one[1:] for one in batch])
            for (index, prompt, tokens), (attention, scores) in zip(batch, found, strict=True):
                results[index] = attempt(
                    partial(self._words, pieces[index], attention[:, len(prompt) - 1 :], scores, tokens)
                )
        return results

    def _tokens(self, piece: Piece) -> tuple[list[int], list[list[int]]]:
        """(what comes before the text, tokens of each word)."""
        if piece.seconds > _LONGEST:
            raise Rejection("too_long", f"{piece.seconds:.1f} s; Whisper hears {_LONGEST:g} s: give shorter segments")
        prompt, base = [self._start], base_language(piece.language)
        if self._languages:
            if f"<|{base}|>" not in self._languages:
                raise Rejection("language", f"this Whisper does not know {piece.language!r}")
            prompt += [self._languages[f"<|{base}|>"], *([self._task] if self._task is not None else [])]
        elif base != "en":
            raise Rejection("language", f"this Whisper knows English alone, and the piece is {piece.language!r}")
        text, tokens, at = piece.text, list[list[int]](), 0 if is_unspaced(piece.language) else -1
        whole = piece.entry is not None
        for word in piece.words:
            written = text[word.begin : word.end] if whole else " ".join(word.spoken)
            tokens.append(self._tokenizer.encode((" " if word.begin > at else "") + written, add_special_tokens=False))
            at = word.end
        count = len(prompt) + 2 + sum(map(len, tokens))
        if count > self._most:
            raise Rejection("words_too_fast", f"{count} tokens; Whisper says {self._most} at most")
        return [*prompt, self._no_times], tokens

    def _run(
        self, sounds: list[np.ndarray], batch: list[tuple[list[int], list[list[int]]]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """float32 [heads, prompt + tokens, frames] attention, and float32 [tokens] log-probabilities, of each piece."""
        torch = self._torch
        rows = [[*prompt, *(i for word in tokens for i in word)] for prompt, tokens in batch]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self._end] * (longest - len(row)) for row in rows], device=self._device)
        mel = self._mel(sounds, sampling_rate=RATE, return_tensors="pt").input_features.to(self._device, self._dtype)
        with torch.inference_mode():
            heard = self._model.model.encoder(mel)  # by itself: its own attention would take gigabytes
            out = self._model(encoder_outputs=heard, decoder_input_ids=ids, output_attentions=True)
            assert out.cross_attentions is not None, "asked for"
            heads = torch.stack([out.cross_attentions[layer][:, head].float() for layer, head in self._heads], 1)
            likely = torch.log_softmax(out.logits.float(), -1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        found = []
        for index, (sound, (prompt, _), row) in enumerate(zip(sounds, batch, rows, strict=True)):
            frames = max(int(np.ceil(len(sound) / RATE * _FRAMES)), 1)
            scores = likely[index, len(prompt) - 1 : len(row) - 1].cpu().numpy()
            found.append((heads[index, :, : len(row), :frames].cpu().numpy(), scores))
        return found

    def _words(self, piece: Piece, attention: np.ndarray, scores: np.ndarray, tokens: list[list[int]]) -> AlignedWords:
        """Args: attention: float32 [heads, 1 + tokens, frames]; the row of a token is where the next one is said."""
        flat = [i for word in tokens for i in word]
        if attention.shape[2] < len(flat) + 1:
            raise Rejection("words_too_fast", f"{len(flat)} tokens in {piece.seconds:.1f} s")
        edges = token_edges(attention) / _FRAMES  # [tokens + 2]
        says = np.array(
            [
                any(map(str.isalnum, self._tokenizer.decode([i]))) or "\ufffd" in self._tokenizer.decode([i])
                for i in flat
            ]
        )
        power = frame_power(piece.samples)
        times, means, at = [], [], 0
        for word in tokens:
            own = np.flatnonzero(says[at : at + len(word)]) + at  # without its punctuation
            first, last = (int(own[0]), int(own[-1])) if len(own) else (at, at + len(word) - 1)
            begin, end = trimmed(power, float(edges[first]), min(float(edges[last + 1]), piece.seconds))
            times.append((begin, end))
            means.append(float(scores[at : at + len(word)].mean()))
            at += len(word)
        chars = np.array([(word.begin, word.end) for word in piece.words], np.int32)
        return AlignedWords(np.array(times, np.float64), np.array(means, np.float32), chars)


def _is_said(token: str) -> bool:
    """Whether a token is no punctuation; bytes of a character count as said."""
    return "\ufffd" in token or any(map(str.isalnum, token))


def token_edges(attention: np.ndarray) -> np.ndarray:
    """The frame with which each row begins on the best monotonic path, then the number of frames; int64 [R + 1].

    Args:
        attention: float32 [heads, R, T], T >= R.
    """
    from scipy.ndimage import median_filter

    spread = attention.std(axis=1, keepdims=True) + 1e-9
    smooth = median_filter((attention - attention.mean(axis=1, keepdims=True)) / spread, (1, 1, _SMOOTH))
    gain = smooth.mean(axis=0)  # [R, T]
    rows, frames = gain.shape
    best = np.full(rows, -np.inf)
    best[0] = gain[0, 0]
    moved = np.zeros((frames, rows), bool)  # whether the row begins in this frame
    for frame in range(1, frames):
        before = np.concatenate([[-np.inf], best[:-1]])
        moved[frame] = before > best
        best = np.maximum(before, best) + gain[:, frame]
    edges, row = np.zeros(rows + 1, np.int64), rows - 1
    edges[rows] = frames
    for frame in range(frames - 1, 0, -1):
        if row and moved[frame, row]:
            edges[row] = frame
            row -= 1
    return edges


def frame_power(samples: np.ndarray) -> np.ndarray:
    """Of each 10 ms, as a share of what loud ones have; float64 [N / 160]."""
    blocks = samples[: len(samples) // 160 * 160].reshape(-1, 160).astype(np.float64)
    power = (blocks**2).mean(axis=1)
    return power / max(float(np.percentile(power, 95)), 1e-12) if len(power) else power


def trimmed(power: np.ndarray, begin: float, end: float) -> tuple[float, float]:
    """A span in seconds without the quiet at its edges."""
    first, last = round(begin * 100), min(round(end * 100), len(power))
    loud = np.flatnonzero(power[first:last] > _QUIET) + first
    return (loud[0] / 100, (loud[-1] + 1) / 100) if len(loud) else (begin, end)
