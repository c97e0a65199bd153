"""No word times, for a language without an aligner: a piece is a segment of its document (SPEC 7)."""

from collections.abc import Sequence

import numpy as np

from lst_prep.align.spans import AlignedWords, Piece
from lst_prep.rejection import Rejection


class Untimed:
    """Gives the whole transcript the whole piece."""

    fingerprint = "none"

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        return [
            AlignedWords(
                np.array([[0.0, piece.seconds]]),
                np.full(1, np.nan, np.float32),
                np.array([[piece.words[0].begin, piece.words[-1].end]], np.int32),
            )
            for piece in pieces
        ]
