"""A row made visible: its tokens in lines, each patch a box, coloured by what it is, with the words above."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.data.interleaving import PLAIN, SPEECH
from megatron_lst.data.stream import ChunkOrigin
from megatron_lst.patching.row import Row
from megatron_lst.vocabulary import IGNORE, Vocabulary

COLOURS = {
    "text": "#7aa6d9",
    "speech": "#f2a65a",
    "silence": "#f6dcb9",
    "marker": "#7d7d7d",
    "padding": "#ececec",
}
READ_ONLY = "#333333"
"""Colour of the line under tokens that are read and not learnt."""
LABEL = 14
"""Characters of a word that are written."""
CHARACTER = 0.24
"""Width of a written character, in boxes."""


@dataclass(frozen=True)
class TokenNotes:
    """What each token of a row is.

    Attributes:
        kind: list [N] of the keys of COLOURS.
        word: int64 [N], the document's word that the token belongs to (silence: the word before it), -1: none.
        label: list [N], the word (of a conversation, the stretch of a turn) at the first of its tokens, else "".
        learnt: bool [N], whether a label asks for it; BOS and padding are never learnt.
    """

    kind: list[str]
    word: np.ndarray
    label: list[str]
    learnt: np.ndarray


def note_tokens(row: Row, origins: Sequence[ChunkOrigin], vocabulary: Vocabulary) -> TokenNotes:
    """Say of each token of a row what it is, from the documents that the row was made of.

    Args:
        origins: `Stream.origins` right after the row; empty where nobody knows it: then nothing is told of words.
    """
    count = len(row.tokens)
    kind = ["padding"] * count if origins else _kinds_of_ids(row.tokens, vocabulary)
    label = [""] * count
    word = np.full(count, -1, np.int64)
    chunk_start = np.searchsorted(row.document, np.arange(len(origins) + 1))
    for ordinal, part in enumerate(origins):
        at, end = int(chunk_start[ordinal]), int(chunk_start[ordinal + 1])
        _note_chunk(row, part, at, end, vocabulary, kind, word, label)
    return TokenNotes(kind, word, label, np.append(False, row.labels[:-1] != IGNORE))


def _kinds_of_ids(tokens: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    markers = (vocabulary.bos, vocabulary.eos, vocabulary.text_marker, vocabulary.speech_marker)
    kinds = np.where(vocabulary.is_speech(tokens), "speech", "text")
    kinds = np.where(np.isin(tokens, markers), "marker", kinds)
    return np.where(tokens == vocabulary.pad, "padding", kinds).tolist()


def _note_chunk(
    row: Row,
    part: ChunkOrigin,
    at: int,
    end: int,
    vocabulary: Vocabulary,
    kind: list[str],
    word: np.ndarray,
    label: list[str],
) -> None:
    document, spans = part.example.document, part.example.spans
    for t in range(at, end):
        kind[t] = "marker"
    at += 1
    for number in range(part.start.span, len(spans)):
        span_kind, begin, finish = (int(x) for x in spans[number])
        begin = part.start.at if number == part.start.span else begin
        at += span_kind != PLAIN
        depth = document.depth if span_kind == SPEECH else 1  # tokens of what the span counts
        length = min((finish - begin) * depth, end - at)
        if length <= 0:
            return
        if len(document.turn_spans):
            kind[at : at + length] = ["speech" if span_kind == SPEECH else "text"] * length
            label[at] = " ".join(document.text[slice(*document.turn_chars[number])].split())
            at += length
            continue
        if span_kind == SPEECH:
            edges, ends = document.word_frames[:, 0], document.word_frames[:, 1]
        elif len(document.word_tokens):
            edges, ends = document.word_tokens[:, 0], document.word_tokens[:, 1]
        else:
            edges = ends = np.zeros(0, np.int64)
        index = begin + np.arange(length) // depth
        words = np.searchsorted(edges, index, side="right") - 1
        word[at : at + length] = words
        previous = -1
        for offset, w in enumerate(words.tolist()):
            spoken = w >= 0 and index[offset] < ends[w]
            kind[at + offset] = "text" if span_kind != SPEECH else "speech" if spoken else "silence"
            if w != previous and w >= 0 and len(document.word_chars) > w:
                a, b = document.word_chars[w]
                label[at + offset] = document.text[a:b]
            previous = w
        at += length


def draw_row(
    row: Row,
    origins: Sequence[ChunkOrigin],
    vocabulary: Vocabulary,
    path: Path,
    first_token: int = 0,
    lines: int = 16,
    per_line: int = 72,
) -> Path:
    """Draw a stretch of a row: boxes are units (patches), thick bars are document boundaries.

    Args:
        origins: `Stream.origins` right after the row.
        first_token, lines, per_line: which tokens are shown and how they are broken into lines.

    Returns:
        The file that was written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    notes = note_tokens(row, origins, vocabulary)
    last = min(len(row.tokens), first_token + lines * per_line)
    lines = max(1, -(-(last - first_token) // per_line))
    figure, axis = pyplot.subplots(figsize=(16, 0.8 * lines + 1.2), constrained_layout=True)
    for line in range(lines):
        begin = first_token + line * per_line
        end = min(last, begin + per_line)
        for column, t in enumerate(range(begin, end)):
            _draw_token(axis, row, notes, t, line, column)
        labels = [label[:LABEL] for label in notes.label[begin:end]]
        for column, height in enumerate(label_heights(labels)):
            axis.text(column, line - 0.3 - 0.14 * height, labels[column], fontsize=6, ha="left", va="center")
    _draw_boundaries(axis, row, first_token, last, per_line)
    axis.set_xlim(-0.5, per_line + 0.5)
    axis.set_ylim(lines - 0.5, -0.85)
    axis.set_yticks(range(lines), [str(first_token + line * per_line) for line in range(lines)])
    axis.set_xticks([])
    axis.set_ylabel("first token of the line")
    for side in axis.spines.values():
        side.set_visible(False)
    chunks = len(origins) or len(row.document_ids)
    axis.set_title(
        f"row {row.index}: {row.units} units, {len(row.tokens)} tokens, {chunks} document chunks; tokens "
        f"{first_token}-{last - 1}. A box is a unit (patch); numbers are tokens a patch."
    )
    axis.legend(
        handles=[
            *(Patch(color=colour, label=name) for name, colour in COLOURS.items()),
            Line2D([], [], color=READ_ONLY, label="read, not learnt"),
        ],
        ncols=len(COLOURS) + 1,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def label_heights(labels: Sequence[str]) -> list[int]:
    """How high above its box each label stands, 0 to 2, so that labels of neighbouring tokens do not overlap.

    Args:
        labels: one for each box of a line, "" for none.
    """
    ends, heights = [0.0] * 3, []
    for column, label in enumerate(labels):
        height = min(range(3), key=lambda h: (ends[h] > column, ends[h] if ends[h] > column else h))
        heights.append(height)
        if label:
            ends[height] = column + CHARACTER * (len(label) + 1)
    return heights


def _draw_token(axis: Any, row: Row, notes: TokenNotes, t: int, line: int, column: int) -> None:
    axis.add_patch(_box(column, line, COLOURS[notes.kind[t]]))
    begins = t == 0 or row.document[t] != row.document[t - 1]
    if not (notes.learnt[t] or begins or notes.kind[t] == "padding"):
        axis.plot([column, column + 1], [line + 0.24] * 2, color=READ_ONLY, linewidth=1.5, solid_capstyle="butt")
    u = int(row.unit[t])
    if (t == 0 or row.unit[t - 1] != u) and row.patch_length[u] > 1:
        axis.text(column + 0.12, line, str(int(row.patch_length[u])), fontsize=6, va="center", color="#553300")


def _box(column: float, line: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column, line - 0.2), 1, 0.4, facecolor=colour, edgecolor="none")


def _draw_boundaries(axis: Any, row: Row, first: int, last: int, per_line: int) -> None:
    """A thin bar before each unit, a thick one before each document."""
    for t in range(first, last):
        if t and row.unit[t] == row.unit[t - 1]:
            continue
        line, column = divmod(t - first, per_line)
        new_document = t == 0 or row.document[t] != row.document[t - 1]
        axis.plot(
            [column, column],
            [line - (0.32 if new_document else 0.2), line + (0.32 if new_document else 0.2)],
            color="#aa0000" if new_document else "white",
            linewidth=2.0 if new_document else 0.8,
        )


def describe_units(row: Row, origins: Sequence[ChunkOrigin], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """One entry a unit for a table: unit, document, kind, tokens, first token, words, closed_at, learnt.

    `closed_at` is the token from which on the unit may be read (SPEC 4), None where it never closes in the row.
    `learnt`: whether its tokens are.
    """
    notes = note_tokens(row, origins, vocabulary)
    start = np.cumsum(row.patch_length) - row.patch_length
    closes = np.searchsorted(row.closed, np.arange(row.units), side="left")
    entries = []
    for u in range(row.units):
        a, b = int(start[u]), int(start[u] + row.patch_length[u])
        ordinal = int(row.unit_document[u])
        entries.append(
            {
                "unit": u,
                "document": row.document_ids[ordinal] if ordinal < len(row.document_ids) else "",
                "kind": notes.kind[a],
                "tokens": b - a,
                "first": a,
                "words": " ".join(x for x in notes.label[a:b] if x),
                "learnt": bool(notes.learnt[a]),
                "closed_at": int(closes[u]) if closes[u] < len(row.tokens) else None,
            }
        )
    return entries
