"""What one call adds to each sequence of a batch: tokens, the units that close, and c(t). Plain numpy, on the host.

A sequence is one document.  Its inputs come either from a row's maps (teacher forcing, any strategy) or from a
`PatchCounter`, which decides static patches as tokens come and so is what generation uses (SPEC 9).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.patching.closing import closed_units
from megatron_lst.patching.row import Row
from megatron_lst.patching.strategies import patch_sequence, static_patches
from megatron_lst.vocabulary import Vocabulary


@dataclass(frozen=True)
class SequenceInput:
    """One sequence's share of a call.

    Attributes:
        tokens: int64 [n], the new tokens.
        unit: int64 [n], the unit of each, counted from the sequence's first.
        closed: int64 [n], c(t), the same count.
        lengths: int64 [m], tokens of each unit that enters the global transformer in this call, in order; the first
            may include tokens of earlier calls that were still open.
        first_token: int64 [m], the first token of each of these units.
    """

    tokens: np.ndarray
    unit: np.ndarray
    closed: np.ndarray
    lengths: np.ndarray
    first_token: np.ndarray


EMPTY = SequenceInput(*(np.zeros(0, np.int64) for _ in range(5)))


class PatchCounter:
    """Units of one sequence under static patching, as a reader of the prefix knows them.

    Args:
        size: p; 1 for an unpatched model.
    """

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.vocabulary, self.size = vocabulary, size
        self.tokens = 0
        self.units = 0
        """Closed units."""
        self.open: list[int] = []
        """Tokens of the patch that is still open."""

    def copy(self) -> "PatchCounter":
        other = PatchCounter(self.vocabulary, self.size)
        other.tokens, other.units, other.open = self.tokens, self.units, list(self.open)
        return other

    def fills(self, token: int) -> bool:
        """Whether the patch stays open after this token, so that no unit closes."""
        return bool(self.vocabulary.is_speech(np.array([token]))[0]) and len(self.open) + 1 < self.size

    def add(self, tokens: Sequence[int] | np.ndarray) -> SequenceInput:
        """Take the next tokens.

        Raises:
            UserError: a token outside the vocabulary, or a sequence that begins with speech.
        """
        new = np.asarray(tokens, np.int64)
        if not len(new):
            return EMPTY
        if ((new < 0) | (new >= self.vocabulary.used_size)).any():
            bad = new[(new < 0) | (new >= self.vocabulary.used_size)][0]
            raise UserError(f"token {int(bad)} is outside the vocabulary of {self.vocabulary.used_size} ids")
        held = len(self.open)
        joined = np.concatenate([np.array(self.open, np.int64), new])
        speech = self.vocabulary.is_speech(joined)
        if self.tokens == 0 and speech[0]:
            raise UserError("a sequence begins with BOS or a marker, not with a speech unit")
        # The open patch begins the sequence that is cut, so the counter goes on from it.
        patches = patch_sequence(speech, lambda begin, end: static_patches(end - begin, self.size))
        lengths = patches.length.astype(np.int64)
        starts = np.cumsum(lengths) - lengths  # [m], the first token of each unit
        closed = closed_units(lengths, patches.late)
        unit = np.repeat(np.arange(len(lengths)), lengths)  # [open + n]
        done = int(closed[-1]) + 1  # units that are closed by now, of those in `joined`
        base = self.units
        self.open = joined[int(lengths[:done].sum()) :].tolist()  # what is behind the last closed unit
        self.units += done
        self.tokens += len(new)
        return SequenceInput(
            new, base + unit[held:], base + closed[held:].astype(np.int64), lengths[:done], joined[starts[:done]]
        )


def inputs_of(row: Row, pad: int) -> list[tuple[slice, SequenceInput]]:
    """The documents of a row, padding left out: (token positions in the row, part)."""
    starts = np.flatnonzero(np.diff(row.document, prepend=-1))  # [documents], padding counts as one
    ends = np.append(starts[1:], len(row.document))
    result = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if row.tokens[start] == pad:
            continue
        place = slice(start, end)
        first, last = int(row.unit[start]), int(row.unit[end - 1])  # its units in the row
        lengths = row.patch_length[first : last + 1].astype(np.int64)
        tokens = row.tokens[place].astype(np.int64)
        result.append(
            (
                place,
                SequenceInput(
                    tokens=tokens,
                    unit=row.unit[place].astype(np.int64) - first,
                    closed=row.closed[place].astype(np.int64) - first,
                    lengths=lengths,
                    first_token=tokens[np.cumsum(lengths) - lengths],
                ),
            )
        )
    return result
