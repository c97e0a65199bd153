"""Forced alignment with a character CTC model (transformers Wav2Vec2ForCTC), in any language that the model knows.

The acoustic model sees pieces of at most `align.piece_seconds`, cut in the quietest places; the alignment runs over the
emissions of the whole piece, so words may cross those cuts. Besides words it gives the time of every character,
from which text pieces get frames of their own.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

from lst_prep.align.spans import AlignedWords, Piece, attempt, group_spoken
from lst_prep.align.viterbi import ctc_align, torchaudio_align
from lst_prep.align.vocabulary import Vocabulary
from lst_prep.audio import RATE
from lst_prep.config import AlignConfig
from lst_prep.devices import choose_device, choose_dtype, model_fingerprint
from lst_prep.languages.romanising import require_uroman
from lst_prep.pieces import equal_length_batches, quiet_cuts
from lst_prep.rejection import Rejection
from lst_prep.transcript import Word
from megatron_lst.errors import UserError

_MOST_CELLS = 1 << 31
"""Cells of one piece's lattice, a byte each: some twenty minutes of speech."""

_BATCH_CELLS = 1 << 26


class CtcAligner:
    """One loaded model. A word's score is the mean log-probability of its characters' frames.

    Args:
        most_cells: a piece whose lattice has more is rejected.

    Raises:
        UserError: the model or its vocabulary cannot be loaded.
    """

    def __init__(self, config: AlignConfig, most_cells: int = _MOST_CELLS) -> None:
        import torch
        from transformers import Wav2Vec2ForCTC

        try:
            model = Wav2Vec2ForCTC.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            raise UserError(
                f"align.model {config.model!r}: cannot be loaded as a Wav2Vec2 CTC model ({error})"
            ) from error
        if config.romanise:
            require_uroman()
        self._vocabulary = Vocabulary(config.model, model.config.pad_token_id, config.romanise)
        self._blank = self._vocabulary.blank
        self._stride = int(np.prod(model.config.conv_stride))
        self._receptive = _receptive_field(model.config.conv_kernel, model.config.conv_stride)
        romanised = " romanised" if config.romanise else ""
        self.fingerprint = hashlib.sha256(f"ctc {model_fingerprint(model)}{romanised}".encode()).hexdigest()[:16]
        self._device = choose_device(config.device)
        self._dtype = choose_dtype(config.precision, self._device)
        self._model = model.eval().to(self._device, self._dtype)
        self._longest, self._budget = config.piece_seconds, int(config.batch_seconds * RATE)
        self._most_cells = most_cells
        self._torch = torch
        self._native = torchaudio_align() if find_spec("torchaudio") else None

    def align(self, samples: np.ndarray, words: list[Word]) -> AlignedWords:
        result = self.align_batch([Piece(samples, words)])[0]
        if isinstance(result, Rejection):
            raise result
        return result

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        """Each piece with its words or with why it has none; the model and the lattice see many at a time."""
        return self.align_emissions(pieces, self._emissions([piece.samples for piece in pieces]))

    def align_emissions(
        self, pieces: Sequence[Piece], emissions: Sequence[np.ndarray]
    ) -> list[AlignedWords | Rejection]:
        """The same, from what the model says: float32 [T, V] log-probabilities of each piece, one row every stride."""
        results: list[AlignedWords | Rejection] = [Rejection("not_aligned")] * len(pieces)
        lattices: list[_Lattice] = []
        for index, (piece, log_probs) in enumerate(zip(pieces, emissions, strict=True)):
            try:
                lattices.append(self._lattice(index, log_probs, piece))
            except Rejection as rejection:
                results[index] = rejection
        for batch in _batches(lattices):
            for lattice, (states, score) in zip(batch, self._paths(batch), strict=True):
                piece = pieces[lattice.piece]
                results[lattice.piece] = attempt(
                    partial(self._words, lattice, states, score, piece.seconds, piece.words)
                )
        return results

    def _lattice(self, index: int, log_probs: np.ndarray, piece: Piece) -> "_Lattice":
        targets, owners = self._targets(piece.words, piece.language)
        if len(log_probs) < max(len(targets), 1):
            raise Rejection("words_too_fast", f"{len(targets)} characters in {len(log_probs)} frames")
        lattice = _Lattice(index, log_probs, targets, owners)
        if lattice.cells > self._most_cells:
            raise Rejection(
                "too_long",
                f"{len(targets)} characters in {len(log_probs)} frames would need {lattice.cells / 2**30:.0f} GiB: "
                f"give the times of the recording's segments",
            )
        return lattice

    def _words(
        self, lattice: "_Lattice", states: np.ndarray, score: float, total: float, words: list[Word]
    ) -> AlignedWords:
        """Times of words and letters from the state of each frame."""
        log_probs, targets, owners = lattice.log_probs, lattice.targets, lattice.owners
        if not np.isfinite(score):
            raise Rejection("not_aligned", f"no path for {len(targets)} characters in {len(log_probs)} frames")
        spoken = [part for word in words for part in word.spoken]
        at = np.flatnonzero((states % 2 == 1) & (owners[np.minimum(states // 2, len(targets) - 1)] >= 0))
        target = states[at] // 2  # the character of each emitting frame
        word = owners[target]
        own = log_probs[at, np.array(targets)[target]]  # its log-probability
        frame = self._stride / RATE  # seconds
        times: list[tuple[float, float]] = []
        scores: list[float] = []
        letters: list[list[float]] = []
        for index in range(len(spoken)):
            first, last = np.searchsorted(word, [index, index + 1])  # the emitting frames of this word
            if first == last:
                raise Rejection("not_aligned", f"{spoken[index]!r} got no frame")
            times.append((at[first] * frame, min((at[last - 1] + 1) * frame, total)))
            scores.append(float(own[first:last].mean()))
            inside = target[first:last]
            ends = np.append(np.flatnonzero(np.diff(inside)), len(inside) - 1)  # last frame of each letter
            letters.append([min((int(at[first + e]) + 1) * frame, total) for e in ends])
        return group_spoken(words, times, scores, letters)

    def _targets(self, words: list[Word], language: str) -> tuple[list[int], np.ndarray]:
        """Character ids of all spoken words, a separator where there is white space between them; owner word of each
        (-1 for separators)."""
        ids: list[int] = []
        owners: list[int] = []
        index, reached = 0, -1
        for word in words:
            for part in word.spoken:
                spaced = part is not word.spoken[0] or word.begin > reached
                if index and spaced and self._vocabulary.separator is not None:
                    ids.append(self._vocabulary.separator)
                    owners.append(-1)
                found = self._vocabulary.ids_of(part, language)
                ids += found
                owners += [index] * len(found)
                index += 1
            reached = word.end
        return ids, np.array(owners)

    def _emissions(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [T, V] log-probabilities of each piece, one row every stride."""
        parts: list[np.ndarray] = []
        owners: list[int] = []
        margin = max(self._receptive - self._stride, 0)  # padding, so that N samples give N // stride rows
        for owner, samples in enumerate(pieces):
            cuts = quiet_cuts(samples, self._longest, self._stride)
            for begin, end in zip(cuts, cuts[1:], strict=False):
                if end - begin >= self._stride:
                    part = samples[begin:end]
                    part = (part - part.mean()) / np.sqrt(part.var() + 1e-7)  # as the model was trained
                    parts.append(np.pad(part, (margin // 2, margin - margin // 2)).astype(np.float32))
                    owners.append(owner)
        rows: list[np.ndarray | None] = [None] * len(parts)
        for members in equal_length_batches([len(part) for part in parts], self._budget):
            for index, found in zip(members, self._run([parts[i] for i in members]), strict=True):
                rows[index] = found
        out: list[list[np.ndarray]] = [[] for _ in pieces]
        for owner, found in zip(owners, rows, strict=True):
            assert found is not None, "a part without emissions"
            out[owner].append(found)
        return [np.concatenate(found) if found else np.zeros((0, 1), np.float32) for found in out]

    def _run(self, batch: list[np.ndarray]) -> np.ndarray:
        """Equal lengths [N + margin] each -> float32 [B, N // stride, V]."""
        torch = self._torch
        frames = (len(batch[0]) - max(self._receptive - self._stride, 0)) // self._stride
        with torch.inference_mode():
            waves = torch.from_numpy(np.stack(batch)).to(self._device, self._dtype)
            logits = self._model(waves).logits.float()
            return np.asarray(torch.log_softmax(logits, -1)[:, :frames].cpu().numpy())

    def _paths(self, batch: "list[_Lattice]") -> list[tuple[np.ndarray, float]]:
        """States int64 [T] of each lattice as `ctc_align` gives them, and the path's log-probability."""
        torch = self._torch
        if self._native is not None:  # takes one at a time
            return [self._native_path(lattice) for lattice in batch]
        frames, lengths = [len(one.log_probs) for one in batch], [len(one.targets) for one in batch]
        emissions = np.zeros((len(batch), max(frames), batch[0].log_probs.shape[1]), np.float32)
        targets = np.zeros((len(batch), max(lengths)), np.int64)
        for row, one in enumerate(batch):
            emissions[row, : frames[row]] = one.log_probs
            targets[row, : lengths[row]] = one.targets
        states, scores = ctc_align(
            torch.from_numpy(emissions).to(self._device),
            torch.from_numpy(targets).to(self._device),
            torch.tensor(frames, device=self._device),
            torch.tensor(lengths, device=self._device),
            self._blank,
        )
        paths = states.cpu().numpy()
        return [(paths[row, : frames[row]], float(scores[row])) for row in range(len(batch))]

    def _native_path(self, lattice: "_Lattice") -> tuple[np.ndarray, float]:
        torch = self._torch
        emissions = torch.from_numpy(lattice.log_probs)[None].to(self._device)
        wanted = torch.tensor([lattice.targets], device=self._device, dtype=torch.int32)
        labels, scores = self._native(emissions, wanted, blank=self._blank)  # type: ignore[operator, misc]
        return _states_of(labels[0].cpu().numpy(), self._blank), float(scores.sum())


@dataclass(frozen=True)
class _Lattice:
    """What the Viterbi search walks for one piece.

    Attributes:
        piece: its index in the batch.
        log_probs: float32 [T, V].
        targets: L character ids, at least one.
        owners: int64 [L], the spoken word of each, -1 for separators.
    """

    piece: int
    log_probs: np.ndarray
    targets: list[int]
    owners: np.ndarray

    @property
    def cells(self) -> int:
        """Bytes of back pointers."""
        return len(self.log_probs) * (2 * len(self.targets) + 1)


def _batches(lattices: list[_Lattice], most_cells: int = _BATCH_CELLS) -> Iterator[list[_Lattice]]:
    """Batches of similar lengths: padded together, they have at most `most_cells` cells, or there is only one."""
    batch: list[_Lattice] = []
    for lattice in sorted(lattices, key=lambda one: (len(one.log_probs), len(one.targets), one.piece)):
        members = [*batch, lattice]
        longest = max(len(one.targets) for one in members)
        if batch and len(members) * len(lattice.log_probs) * (2 * longest + 1) > most_cells:
            yield batch
            members = [lattice]
        batch = members
    if batch:
        yield batch


def _receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Samples that one output frame sees."""
    field, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * step  # `step` samples between two inputs of this layer
        step *= stride
    return field


def _states_of(labels: np.ndarray, blank: int) -> np.ndarray:
    """Label of each frame -> lattice state of each frame (2i blank before target i, 2i + 1 target i)."""
    states = np.empty(len(labels), np.int64)
    done = 0
    previous = blank
    for t, label in enumerate(labels):
        if label != blank and label != previous:
            done += 1
        states[t] = 2 * done - 1 if label != blank else 2 * done  # `done` characters have begun
        previous = label
    return states
